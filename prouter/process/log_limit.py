"""A bound on lines of the log about one kind of event."""

from __future__ import annotations

__all__ = ["LogLimit"]

_PER_SECOND = 10


class LogLimit:
    """At most ten lines per second: a flood of events must not fill the log."""

    __slots__ = ("_logged", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._logged = 0

    def allows(self, now: float) -> bool:
        """Whether one more event of second `now`, of any clock, is to be logged."""
        if int(now) != self._second:
            self._second, self._logged = int(now), 0
        self._logged += 1
        return self._logged <= _PER_SECOND
