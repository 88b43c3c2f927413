"""Rows about many connected agents."""

from __future__ import annotations

from tests.bench.rows import Probe

__all__ = ["PROBES"]

PROBES: tuple[Probe, ...] = ()
