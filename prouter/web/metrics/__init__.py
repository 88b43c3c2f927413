"""Counters that all processes of a router share, and their exposition for Prometheus."""
