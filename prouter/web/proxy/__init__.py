"""Forwarding HTTP to jobs, byte for byte, over fabric streams."""
