"""How much of the machine others use while something is measured."""

from __future__ import annotations

import os
import time

from tests.bench.processes import TICK, busy_seconds, stat

__all__ = ["Disturbance"]


class Disturbance:
    """Counts from its making on. Whoever was started by this process, directly or not, is no other."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = busy_seconds()
        self._ours = _family_seconds()

    @property
    def share(self) -> float:
        """Share of all cores that others used since, 0 to 1."""
        took = time.monotonic() - self._began
        others = (busy_seconds() - self._busy) - (_family_seconds() - self._ours)
        return max(0.0, others / (max(took, 0.001) * (os.cpu_count() or 1)))


def _family_seconds() -> float:
    """CPU seconds of this process and its descendants, with those of theirs that have ended."""
    known = {int(entry): fields for entry in os.listdir("/proc") if entry.isdigit() and (fields := stat(int(entry)))}
    family = {os.getpid()}
    fresh = family
    while fresh:
        fresh = {pid for pid, fields in known.items() if int(fields[1]) in fresh} - family
        family |= fresh
    return sum(sum(map(int, known[pid][11:15])) for pid in family if pid in known) / TICK
