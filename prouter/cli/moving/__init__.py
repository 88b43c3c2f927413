"""Bytes between this machine and jobs: copies, forwarded ports, progress."""
