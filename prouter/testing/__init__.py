"""Tests that packages which extend pRouter run against themselves: `prouter.testing.runner_conformance`.

They need pytest (``pip install 'prouter[testing]'``).
"""
