"""The demonstration: JupyterLab as a job, started and used through a router's HTTP API alone."""
