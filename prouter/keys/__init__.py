"""Keys and invitations on disk: what lets a router and its agents recognise each other."""
