"""Reading and following what jobs write to stdout and stderr."""
