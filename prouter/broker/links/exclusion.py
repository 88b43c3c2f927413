"""How long agents that were cut off for flooding have to wait before they may link again.

If several agents with the same token were cut off, unknown agents with that token have to wait as well, because they
may be the same agent under new names. Without the wait, an agent that links again at once would flood the router most
of the time: what it sends is counted only once it has arrived.
"""

from __future__ import annotations

__all__ = ["Exclusion"]

_FIRST = 2.0
"""Seconds to wait after the first time, doubled each further time."""
_LONGEST = 20.0
"""Seconds to wait at most: less than the broker waits for an agent with jobs."""
_FORGIVEN = 600.0
"""Seconds after which an earlier time is forgotten."""
_SEVERAL = 8
"""Agents with the same token that may be cut off within `_LONGEST` before unknown agents have to wait."""
_MOST = 4096
"""Agents remembered, and tokens; the oldest are forgotten first."""


class Exclusion:
    """The agents that were cut off."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, float]] = {}
        """By the agent's uid: when its wait ends, how long it is, and when the agent was cut off first."""
        self._strikes: dict[str, list[float]] = {}
        """By mark of the token: when agents that presented it were cut off."""

    def cut_off(self, uid: str, mark: str, now: float) -> None:
        """Have an agent wait.

        Args:
            mark: of the token that it presented.
        """
        self._exclude(uid, now)
        strikes = [at for at in self._strikes.pop(mark, ()) if now - at < _LONGEST]
        self._strikes[mark] = [*strikes[-_SEVERAL:], now]
        if len(self._strikes) > _MOST:
            del self._strikes[next(iter(self._strikes))]

    def left_for_new(self, mark: str, now: float) -> float:
        """Seconds for which unknown agents with this token have to wait; 0 if they need not."""
        strikes = self._strikes.get(mark, [])
        return max(0.0, strikes[0] + _LONGEST - now) if len(strikes) > _SEVERAL else 0.0

    def _exclude(self, uid: str, now: float) -> None:
        _, before, since = self._known.pop(uid, (0.0, 0.0, now))
        seconds = min(_LONGEST, before * 2) if before and now - since < _FORGIVEN else _FIRST
        self._known[uid] = (now + seconds, seconds, now)
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def left(self, uid: str, now: float) -> float:
        """Seconds for which the agent has to wait; 0 if it need not."""
        until = self._known.get(uid, (0.0, 0.0, 0.0))[0]
        return max(0.0, until - now)
