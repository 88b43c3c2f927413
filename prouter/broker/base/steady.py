"""Time by which the history ages: it goes as fast as the monotonic clock, and never jumps as the wall clock may.

It begins when the router starts, at the wall clock's time, or at that of the last event before if that is earlier: a
machine that starts with a wrong clock must not find everything old. The time a router did not run does not count so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["SteadyClock"]

log = logging.getLogger("prouter.broker")

_JUMP = 60.0
"""Seconds by which the wall clock may leave the monotonic one before that is worth a line in the log."""


class SteadyClock:
    """See the module's docstring.

    Args:
        wall: the wall clock, seconds since the epoch.
        now: the monotonic clock's time.
        last_seen: when the router before is known to have run last, seconds since the epoch; None if it is not known.
    """

    def __init__(self, wall: Callable[[], float], now: float, last_seen: float | None) -> None:
        self._wall = wall
        self._start = now
        self._offset = wall() - now
        self._begin = min(wall(), last_seen) if last_seen is not None else wall()

    def time(self, now: float) -> float:
        """Seconds since the epoch, as if no clock had ever been set."""
        return self._begin + (now - self._start)

    def ran(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._start

    def stamp(self, now: float) -> float:
        """The wall clock's time for something that happens now, unless that clock is behind."""
        return max(self._wall(), self.time(now))

    def look(self, now: float) -> None:
        """Log it when the wall clock was set."""
        jump = self._wall() - now - self._offset
        if abs(jump) > _JUMP:
            self._offset += jump
            log.warning("event=clock_jumped seconds=%.0f: finished jobs do not age by it", jump)
