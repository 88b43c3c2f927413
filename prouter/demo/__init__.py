"""``prouter demo``: JupyterLab as a job, started and used through nothing but a router's HTTP API."""
