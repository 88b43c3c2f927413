"""Memory of streams that have ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

__all__ = ["Tombstone", "Tombstones"]

_REMEMBERED = 16384
"""How many ended streams are remembered, the latest of them."""


class Tombstone(NamedTuple):
    """How a stream ended.

    Attributes:
        consumed: the position up to which this end consumed the peer's bytes.
        code: the code of the reset; None for a stream that ended cleanly.
    """

    consumed: int
    code: str | None


class Tombstones:
    """The streams of one mux that ended last, by id.

    A frame of an ended stream may still be on its way, or may come again over the next path. Without a tombstone a late
    OPEN would start the stream a second time, and a peer that missed the end would never be told how it ended.
    """

    __slots__ = ("_ended", "_late")

    def __init__(self) -> None:
        self._ended: OrderedDict[int, Tombstone] = OrderedDict()
        self._late: dict[int, int] = {}
        """Bytes that came for a stream after its end."""

    def get(self, sid: int) -> Tombstone | None:
        """Return how the stream ended, None if it is unknown or forgotten."""
        return self._ended.get(sid)

    def add(self, sid: int, consumed: int, code: str | None) -> None:
        """Remember how a stream ended, and forget the oldest one if there are too many."""
        self._ended[sid] = Tombstone(consumed, code)
        if len(self._ended) > _REMEMBERED:
            forgotten, _ = self._ended.popitem(last=False)
            self._late.pop(forgotten, None)

    def late_bytes(self, sid: int, size: int) -> int:
        """Add `size` bytes to those that came for an ended stream; return their sum."""
        late = self._late[sid] = self._late.get(sid, 0) + size
        return late
