"""How long the loop keeps others waiting: the busy part of its turns. And what its process uses."""

from __future__ import annotations

import os
import resource

__all__ = ["Lag", "process_figures"]

_WINDOW = 10.0
"""Seconds over which the longest turn is shown."""


class Lag:
    """Busy times of the loop's turns, seconds.

    Attributes:
        turns: since the start.
        average: moving, of the last hundred turns or so.
    """

    def __init__(self) -> None:
        self.turns = 0
        self.average = 0.0
        self._longest = 0.0
        self._before = 0.0
        self._since = 0.0

    @property
    def longest(self) -> float:
        """The longest turn of the last ten to twenty seconds."""
        return max(self._longest, self._before)

    def turned(self, started: float, ended: float) -> float:
        """A turn is over; its end."""
        busy = ended - started
        self.turns += 1
        self.average += (busy - self.average) * 0.01
        if ended - self._since > _WINDOW:
            self._before, self._longest, self._since = self._longest, 0.0, ended
        if busy > self._longest:
            self._longest = busy
        return ended


def process_figures() -> dict[str, float]:
    """Memory and CPU time of this process, for `stats`."""
    with open("/proc/self/statm", "rb") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"rss_bytes": resident, "cpu_seconds": usage.ru_utime + usage.ru_stime}
