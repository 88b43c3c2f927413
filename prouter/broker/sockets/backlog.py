"""Bounds on the bytes that wait to be sent to one peer, by sender.

The receive windows of streams bound what honest peers have in flight, but nothing bounds the number of streams, and not
every peer is honest. When a peer reads less than others send to it, messages of senders that have more than their share
of the queue are dropped. Once the queue is short again, their streams resume (`Port.relieved`).

The share of a sender is known roughly: bytes are counted by sender in two generations, and the older one is forgotten
once all of it must have left.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Backlog", "Queued"]

SMALL = 1024 * 1024
"""Bytes that may wait before they are counted by sender."""
SHARE = 4 * 1024 * 1024
"""Bytes that each sender may have waiting in any case."""
MOST_OF_ONE = 64 * 1024 * 1024
"""Bytes that one sender may have waiting while the queue is not full."""
MOST = 128 * 1024 * 1024
"""Bytes that may wait in all; beyond, only senders with less than their share may add some."""


class Backlog:
    """Bytes that wait for one peer, by sender. `taken` and `sent` are the totals of the peer's `Connection`."""

    __slots__ = ("_before", "_counted", "_now", "_turn")

    def __init__(self) -> None:
        self._now: Counter[bytes] = Counter()
        self._before: Counter[bytes] = Counter()
        self._turn = 0
        """What had been taken when the younger generation began: the older one has left when this was sent."""
        self._counted = 0
        """What had been taken after the last message that was counted."""

    def admit(self, source: bytes, size: int, cost: int, taken: int, sent: int) -> bool:
        """Whether a message of `source` may be added. To be asked while more than `SMALL` waits.

        Args:
            size: bytes by which `taken` grows with it.
            cost: bytes that it counts for in its sender's share.
        """
        if sent >= self._counted:
            self._now.clear()
            self._before.clear()
            self._turn = taken
        elif sent >= self._turn:
            self._before, self._now = self._now, Counter()
            self._turn = taken
        own = self._now[source] + self._before[source]
        if own >= SHARE and (own >= MOST_OF_ONE or taken - sent >= MOST):
            return False
        self._now[source] += cost
        self._counted = taken + size
        return True


class Queued:
    """Bytes of one kind that wait for a peer among others, known as roughly as the shares of a `Backlog`."""

    __slots__ = ("_before", "_now", "_turn")

    def __init__(self) -> None:
        self._now = self._before = 0
        self._turn = 0
        """As in `Backlog`."""

    def left(self, taken: int, sent: int) -> None:
        """Forget what must have left. `taken` and `sent` are the totals of the peer's `Connection`."""
        if sent >= taken:
            self._now = self._before = 0
        elif sent >= self._turn:
            self._before, self._now = self._now, 0
        else:
            return
        self._turn = taken

    def add(self, size: int) -> int:
        """Count a message of so many bytes; return how many bytes wait with it."""
        self._now += size
        return self._before + self._now
