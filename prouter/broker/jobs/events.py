"""The last events, for clients that were away for a moment, with ids that keep growing over restarts."""

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
"""How far ids leap beyond the last one known at a restart: more events than can have gone unsaved."""


class EventLog:
    """A ring of the last `size` events, packed: they are many, and hardly ever asked for again.

    Args:
        size: how many events at most.
        most_bytes: and how many bytes of them (but always one event).
        last: the last id a broker before may have given.
        wall: current time, seconds since the epoch; ids start there (in microseconds) or beyond `last`.
        kept: the last events of the broker before, with their ids.
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
        """Id of the oldest event kept; of the next one when there is none."""
        return self._events[0][0] if self._events else self.last + 1

    def __len__(self) -> int:
        return len(self._events)

    def all(self) -> list[tuple[int, bytes]]:
        """The events kept, packed, with their ids."""
        return list(self._events)

    def append(self, name: str, body: dict[str, Any], at: float) -> tuple[dict[str, Any], bytes]:
        """A new event: its body with its id and time, as workers are told of it, and the packed event."""
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
        """Events newer than `last_seen`, oldest first; with None the newest `limit`.

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
