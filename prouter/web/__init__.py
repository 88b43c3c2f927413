"""The HTTP side of a router host: gunicorn workers with the HTTP API and the proxy to jobs."""
