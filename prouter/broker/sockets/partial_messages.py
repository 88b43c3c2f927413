"""Bounds on messages of agents that have not arrived whole, all agents together.

One message may have 64 MiB, and many agents may each leave one unfinished. Honest agents send pieces of about a
mebibyte, which are whole soon after their first byte. So agents that have held much for longest are closed first.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Unfinished"]

Holder = TypeVar("Holder", bound=Hashable)

SMALL = 64 * 1024
"""Bytes of a message that is not looked at."""
LARGE = 4 * 1024 * 1024
"""Bytes of a message from which its sender may be cut off when there are too many."""
MOST = 256 * 1024 * 1024
"""Bytes that all may hold before those of large messages are cut off; and twice as much before anybody is."""


class Unfinished(Generic[Holder]):
    """Bytes of messages that have not arrived whole, by holder."""

    __slots__ = ("_held", "total")

    def __init__(self) -> None:
        self._held: dict[Holder, int] = {}
        """In the order in which they began to hold something."""
        self.total = 0

    def holds(self, holder: Holder, size: int) -> None:
        """So much of a message of `holder` has arrived, or is to come in the part that has begun."""
        before = self._held.get(holder, 0)
        if size < SMALL:
            if before:
                self.total -= self._held.pop(holder)
        elif size != before:
            if size < before:
                del self._held[holder]  # Another message.
            self._held[holder] = size
            self.total += size - before

    def let_go(self, holder: Holder) -> bool:
        """Its connection is closed; whether much memory is free now."""
        size = self._held.pop(holder, 0)
        self.total -= size
        return size > LARGE

    def too_much(self) -> Holder | None:
        """Who is to be cut off, if anybody is."""
        if self.total <= MOST:
            return None
        for holder, size in self._held.items():
            if size > LARGE or self.total > 2 * MOST:
                return holder
        return None
