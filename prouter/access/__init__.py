"""Who may use the HTTP API and the jobs: roles, tokens and credentials, without I/O but for the tokens' file."""
