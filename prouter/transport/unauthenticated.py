"""Connections whose peers are not authenticated: they have a short while to change that, and there are not many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Unauthenticated"]

_PATIENCE = 10.0
"""Seconds a connection may take until its peer is accepted; one that was refused waits longer before it comes again."""
_HANDSHAKES = 500
"""Handshakes that one core carries out in a second, even if it is busy: the more there are, the longer all may take."""
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
        expected: how many more there may be, because so many known peers are about to return.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.cut = 0
        self.expected: Callable[[], int] = int
        self._most = min(most, _MOST)
        self._until: OrderedDict[T, float] = OrderedDict()
        """How long each may take, by how many were there before it."""

    def __len__(self) -> int:
        return len(self._until)

    def opened(self, connection: T, now: float) -> None:
        """A connection was accepted."""
        self._until[connection] = now + _PATIENCE + len(self._until) / _HANDSHAKES

    def gone(self, connection: T) -> None:
        """A connection was closed, or its peer authenticated."""
        self._until.pop(connection, None)

    def due(self, now: float) -> bool:
        """Whether some have had their time."""
        if not self._until:
            return False
        waiting = len(self._until)
        if waiting > self._most and waiting > self._most + self.expected():
            return True
        return now > next(iter(self._until.values()))

    def take_due(self, now: float) -> list[T]:
        """Some of those that have had their time: close them."""
        found: list[T] = []
        while len(found) < _AT_ONCE and self.due(now):
            found.append(self._until.popitem(last=False)[0])
        self.cut += len(found)
        return found
