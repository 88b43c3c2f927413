"""Authenticated agents and workers: admission, heartbeats, forwarding, dialling."""
