"""pRouter: a distributed job manager and HTTP proxy."""

__version__ = "0.1.0"
