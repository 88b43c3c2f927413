"""Agents that were cut off because they flooded somebody: they have to wait before they may link again.

When several agents that come with the same token do so, those that nobody knows yet have to wait, too: it may be the
same one under new names. Without that one that links again at once would be heard most of the time, for what it sends
counts only once it has arrived.
"""

from __future__ import annotations

__all__ = ["Exclusion"]

_FIRST = 2.0
"""Seconds after the first time; twice as many after each further one."""
_LONGEST = 20.0
"""Seconds at most: below the time for which an agent's jobs wait for it."""
_FORGIVEN = 600.0
"""Seconds after which an earlier time does not count any more."""
_SEVERAL = 8
"""Agents with the same token that may be cut off within the time for which one waits at most without that."""
_MOST = 4096
"""Agents remembered; the longest known are forgotten first."""


class Exclusion:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}
        """By uid: until when, for how long, and since when."""
        self._strikes: dict[str, list[float]] = {}
        """By mark of the token, when agents that came with it were cut off."""

    def cut_off(self, uid: str, mark: str, now: float) -> None:
        """An agent was, that came with the token of this mark."""
        self._exclude(uid, now)
        strikes = [at for at in self._strikes.pop(mark, ()) if now - at < _LONGEST]
        self._strikes[mark] = [*strikes[-_SEVERAL:], now]
        if len(self._strikes) > _MOST:
            del self._strikes[next(iter(self._strikes))]

    def left_for_new(self, mark: str, now: float) -> float:
        """Seconds for which no unknown agent is let in with the token of this mark; 0 when they are."""
        strikes = self._strikes.get(mark, [])
        return max(0.0, strikes[0] + _LONGEST - now) if len(strikes) > _SEVERAL else 0.0

    def _exclude(self, uid: str, now: float) -> None:
        _, before, since = self._known.pop(uid, (0.0, 0.0, now))
        seconds = min(_LONGEST, before * 2) if before and now - since < _FORGIVEN else _FIRST
        self._known[uid] = (now + seconds, seconds, now)
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def left(self, uid: str, now: float) -> float:
        """Seconds for which the agent is not let in; 0 when it is."""
        until = self._known.get(uid, (0.0, 0.0, 0.0))[0]
        return max(0.0, until - now)
