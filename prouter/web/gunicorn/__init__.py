"""gunicorn: worker class, settings, number of workers, balance of connections, and WSGI for Falcon."""
