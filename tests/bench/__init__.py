"""Benchmarks: the router and its neighbours, measured side by side in one run; `python -m tests.bench`."""
