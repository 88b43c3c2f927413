"""The gunicorn side: worker class, settings, balance of connections, and WSGI for Falcon."""
