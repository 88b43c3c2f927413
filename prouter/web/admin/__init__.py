"""The HTTP API in Falcon: the application, its operations and their resources."""
