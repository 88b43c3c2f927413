"""Tests of pRouter."""
