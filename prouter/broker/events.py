"""The last events, for clients that were away for a moment, with ids that keep growing over restarts."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

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
    """

    def __init__(self, size: int, last: int, wall: float, most_bytes: int = 32 << 20) -> None:
        self._events: deque[bytes] = deque()
        self._size = size
        self._most_bytes = most_bytes
        self._bytes = 0
        self.last = max(last + _JUMP if last else 0, int(wall * 1_000_000))
        """Id of the newest event, or the id before the first."""

    @property
    def first(self) -> int:
        """Id of the oldest event kept; of the next one when there is none."""
        return self.last + 1 - len(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def append(self, name: str, body: dict[str, Any], at: float) -> dict[str, Any]:
        """A new event; its body with its id and time, as workers are told of it."""
        self.last += 1
        told = {**body, "id": self.last, "at": at}
        packed = pack_body({"id": self.last, "at": at, "name": name, "body": told})
        self._events.append(packed)
        self._bytes += len(packed)
        while len(self._events) > self._size or (self._bytes > self._most_bytes and len(self._events) > 1):
            self._bytes -= len(self._events.popleft())
        return told

    def after(self, last_seen: int | None, limit: int) -> list[dict[str, Any]]:
        """Events newer than `last_seen`, oldest first; with None the newest `limit`."""
        skip = max(0, len(self._events) - limit) if last_seen is None else max(0, last_seen + 1 - self.first)
        return [unpack_body(event) for event in islice(self._events, skip, skip + limit)]
