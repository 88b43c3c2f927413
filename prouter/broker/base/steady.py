"""A clock that never jumps as the wall clock may: for the age of ended jobs, and for deadlines.

It starts with the router and runs with the monotonic clock. For ages it starts at the wall clock's time or at the time
of the last event before, whichever is earlier. So a machine that starts with a wrong clock does not find every job old,
and the time in which no router ran does not count. For deadlines that time does count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["SteadyClock"]

log = logging.getLogger("prouter.broker")

_JUMP = 60.0
"""Seconds between wall clock and monotonic clock from which on a jump is logged."""


class SteadyClock:
    """A clock that starts with the router.

    Args:
        wall: gives the wall clock's time, seconds since the epoch.
        now: the monotonic clock's time, seconds.
        last_seen: when an earlier router is known to have run last, seconds since the epoch; None if that is unknown.
    """

    def __init__(self, wall: Callable[[], float], now: float, last_seen: float | None) -> None:
        self._wall = wall
        self._start = now
        self._offset = self._set = wall() - now
        self._begin = min(wall(), last_seen) if last_seen is not None else wall()

    def time(self, now: float) -> float:
        """Seconds since the epoch, as if nobody had set the wall clock since the start."""
        return self._begin + (now - self._start)

    def deadline(self, now: float) -> float:
        """Seconds since the epoch by the wall clock as it was at the start, as if nobody had set it since."""
        return now + self._set

    def ran(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._start

    def stamp(self, now: float) -> float:
        """The time to store for something that happens now: the wall clock's, or this clock's if that is later."""
        return max(self._wall(), self.time(now))

    def look(self, now: float) -> None:
        """Log a jump of the wall clock since the last look."""
        jump = self._wall() - now - self._offset
        if abs(jump) > _JUMP:
            self._offset += jump
            log.warning("event=clock_jumped seconds=%.0f: finished jobs do not age by it", jump)
