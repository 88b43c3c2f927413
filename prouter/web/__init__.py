"""The HTTP side of a router host: gunicorn workers with the admin API and the proxy to jobs."""
