"""The last events, for clients that were disconnected for a moment. Their ids grow, also over restarts."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import itemgetter
from typing import Any

from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.frames import pack_body, unpack_body

__all__ = ["EventLog"]

_JUMP = 1_000_000
"""Added to the last stored id at a restart: more events than an earlier broker can have sent and not stored."""


class EventLog:
    """The last `size` events, packed, because there are many and clients seldom ask for them.

    Args:
        size: how many events at most.
        most_bytes: how many bytes of them at most; one event is always kept.
        last: the last id that an earlier broker may have given.
        wall: current time, seconds since the epoch. Ids start there, in microseconds, or beyond `last`.
        kept: the last events of an earlier broker, with their ids.
    """

    def __init__(
        self, size: int, last: int, wall: float, most_bytes: int = 32 << 20, kept: Iterable[tuple[int, bytes]] = ()
    ) -> None:
        self._events: deque[tuple[int, bytes]] = deque()
        self._size = size
        self._most_bytes = most_bytes
        self._bytes = 0
        for number, packed in kept:
            self._add(number, packed)
        self.last = max(last + _JUMP if last else 0, int(wall * 1_000_000))
        """Id of the newest event, or the id before the first."""

    @property
    def first(self) -> int:
        """Id of the oldest event that is kept; of the next event if there is none."""
        return self._events[0][0] if self._events else self.last + 1

    def __len__(self) -> int:
        return len(self._events)

    def all(self) -> list[tuple[int, bytes]]:
        """All events that are kept, packed, with their ids."""
        return list(self._events)

    def append(self, name: str, body: dict[str, Any], at: float) -> tuple[dict[str, Any], bytes]:
        """Add an event; return its body with id and time, as workers get it, and the packed event."""
        self.last += 1
        told = {**body, "id": self.last, "at": at}
        packed = pack_body({"id": self.last, "at": at, "name": name, "body": told})
        self._add(self.last, packed)
        return told, packed

    def _add(self, number: int, packed: bytes) -> None:
        self._events.append((number, packed))
        self._bytes += len(packed)
        while len(self._events) > self._size or (self._bytes > self._most_bytes and len(self._events) > 1):
            self._bytes -= len(self._events.popleft()[1])

    def after(self, last_seen: int | None, limit: int, most: int = MAX_PAGE) -> list[dict[str, Any]]:
        """Events newer than `last_seen`, the oldest first; with None the newest `limit`.

        Args:
            most: bytes of them together, beyond which there is but one.
        """
        if last_seen is None:
            skip = max(0, len(self._events) - limit)
        else:
            skip = bisect_right(self._events, last_seen, key=itemgetter(0))
        found: list[dict[str, Any]] = []
        for _, packed in islice(self._events, skip, skip + limit):
            most -= len(packed)
            if found and most < 0:
                break
            found.append(unpack_body(packed))
        return found
