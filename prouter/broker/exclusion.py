"""Agents that were cut off because they flooded somebody: they have to wait before they may link again.

Without that one that links again at once would be heard most of the time, for what it sends counts only once it has
arrived.
"""

from __future__ import annotations

__all__ = ["Exclusion"]

_FIRST = 2.0
"""Seconds after the first time; twice as many after each further one."""
_LONGEST = 20.0
"""Seconds at most: below the time for which an agent's jobs wait for it."""
_FORGIVEN = 600.0
"""Seconds after which an earlier time does not count any more."""
_MOST = 4096
"""Agents remembered; the longest known are forgotten first."""


class Exclusion:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}
        """By uid: until when, for how long, and since when."""

    def exclude(self, uid: str, now: float) -> None:
        """The agent was cut off."""
        _, before, since = self._known.pop(uid, (0.0, 0.0, now))
        seconds = min(_LONGEST, before * 2) if before and now - since < _FORGIVEN else _FIRST
        self._known[uid] = (now + seconds, seconds, now)
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def left(self, uid: str, now: float) -> float:
        """Seconds for which the agent is not let in; 0 when it is."""
        until = self._known.get(uid, (0.0, 0.0, 0.0))[0]
        return max(0.0, until - now)
