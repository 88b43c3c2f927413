"""Event loop lag: how long iterations keep other peers waiting. And the memory and CPU time of the process."""

from __future__ import annotations

import os
import resource

__all__ = ["Lag", "process_figures"]

_WINDOW = 10.0
"""Seconds over which the longest iteration is shown."""


class Lag:
    """Busy times of the event loop's iterations, in seconds.

    Attributes:
        iterations: number of iterations since the start.
        average: moving average over about a hundred iterations.
    """

    def __init__(self) -> None:
        self.iterations = 0
        self.average = 0.0
        self._longest = 0.0
        self._before = 0.0
        self._since = 0.0

    @property
    def longest(self) -> float:
        """The longest iteration of the last ten to twenty seconds."""
        return max(self._longest, self._before)

    def iterated(self, started: float, ended: float) -> float:
        """Count an iteration that was busy between these times, and return its end."""
        busy = ended - started
        self.iterations += 1
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
