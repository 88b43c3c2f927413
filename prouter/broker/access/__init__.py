"""Who may link: tokens, keys and invitations, as they are on disk at the moment."""
