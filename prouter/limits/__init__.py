"""Limits of requests: budgets that all workers of a router share, in memory of a fixed size."""
