"""Connections whose peers are not authenticated: they have a short while to change that, and there are not many."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Unauthenticated"]

_PATIENCE = 10.0
"""Seconds a connection may take until its peer is accepted; one that was refused waits longer before it comes again."""
_MOST = 4096
"""Connections that may be unauthenticated at once, unless told otherwise; the oldest are closed."""
_AT_ONCE = 200
"""Connections closed at once; more than are accepted at once."""


T = TypeVar("T")


class Unauthenticated(Generic[T]):
    """The connections without an authenticated peer, oldest first.

    Args:
        most: how many there may be.

    Attributes:
        cut: how many had to be closed.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.cut = 0
        self._most = min(most, _MOST)
        self._since: OrderedDict[T, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def opened(self, connection: T, now: float) -> None:
        """A connection was accepted."""
        self._since[connection] = now

    def gone(self, connection: T) -> None:
        """A connection was closed, or its peer authenticated."""
        self._since.pop(connection, None)

    def due(self, now: float) -> bool:
        """Whether some have had their time."""
        oldest = next(iter(self._since.values()), now)
        return now - oldest > _PATIENCE or len(self._since) > self._most

    def take_due(self, now: float) -> list[T]:
        """Some of those that have had their time: close them."""
        found: list[T] = []
        while len(found) < _AT_ONCE and self.due(now):
            found.append(self._since.popitem(last=False)[0])
        self.cut += len(found)
        return found
