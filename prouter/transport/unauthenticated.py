"""Connections whose peers are not authenticated: they have a short while to change that, and there are not many.

Others wait while there are as many as there may be: a peer that goes on with its handshake is not closed to make room
for one that has only come. Those that say nothing are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Unauthenticated"]

_PATIENCE = 10.0
"""Seconds a connection may take until its peer is accepted; one that was refused waits longer before it comes again."""
_HANDSHAKES = 500
"""Handshakes that one core carries out in a second, even if it is busy: the more there are, the longer all may take."""
_SILENCE = 2.0
"""Seconds without a word after which a connection makes room for others. A network loses a packet within that time and
sends it again."""
_MOST = 1024
"""Connections that may be unauthenticated at once, unless told otherwise."""
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
        self._until: OrderedDict[T, float] = OrderedDict()
        """How long each may take, by how many were there before it."""
        self._heard: OrderedDict[T, float] = OrderedDict()
        """When each was last heard, who has been silent for longest first."""

    def __len__(self) -> int:
        return len(self._until)

    @property
    def full(self) -> bool:
        """Whether others have to wait for now."""
        return len(self._until) >= self._most

    def opened(self, connection: T, now: float) -> None:
        """A connection was accepted."""
        self._until[connection] = now + _PATIENCE + len(self._until) / _HANDSHAKES
        self._heard[connection] = now

    def heard(self, connection: T, now: float) -> None:
        """A connection goes on with its handshake."""
        if connection in self._heard:
            self._heard[connection] = now
            self._heard.move_to_end(connection)

    def gone(self, connection: T) -> None:
        """A connection was closed, or its peer authenticated."""
        self._until.pop(connection, None)
        self._heard.pop(connection, None)

    def take_excess(self) -> list[T]:
        """Those beyond as many as there may be, who have been silent for longest: close them.

        For listeners that cannot have others wait.
        """
        found: list[T] = []
        while len(self._until) > self._most:
            found.append(next(iter(self._heard)))
            self.gone(found[-1])
        self.cut += len(found)
        return found

    def due(self, now: float) -> bool:
        """Whether some have had their time, or are silent while others wait."""
        return bool(self._until) and (self._overdue(now) or self._silent(now))

    def _overdue(self, now: float) -> bool:
        return now > next(iter(self._until.values()))

    def _silent(self, now: float) -> bool:
        return now > next(iter(self._heard.values())) + _SILENCE and self.full

    def take_due(self, now: float, waits: Callable[[T], bool] = lambda _: False) -> list[T]:
        """Some of those that have had their time, or are silent while others wait: close them.

        Args:
            now: seconds of the clock that the other methods are given.
            waits: whether a connection has said something that was not read yet. Who has waited long to be heard is
                not to blame, and gets more time.
        """
        found: list[T] = []
        for _ in range(_AT_ONCE):
            if not self.due(now):
                break
            connection = next(iter(self._until if self._overdue(now) else self._heard))
            if now > self._heard[connection] + _SILENCE and waits(connection):
                self.heard(connection, now)
                self._until[connection] = max(self._until.pop(connection), now + _SILENCE)
            else:
                self.gone(connection)
                found.append(connection)
        self.cut += len(found)
        return found
