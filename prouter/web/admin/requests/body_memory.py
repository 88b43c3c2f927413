"""A limit on the memory of all JSON bodies that are arriving at a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import falcon

from prouter.errors import Overloaded

__all__ = ["BodyMemory", "PartialBody"]

_KEY = "prouter.body_memory"
_OWN = 64 * 1024 * 1024


class PartialBody:
    """A body that is arriving; made by `BodyMemory.body`."""

    def __init__(self, memory: BodyMemory) -> None:
        self.data = bytearray()
        self._memory = memory
        self._dropped = False

    def add(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            Overloaded: the body was dropped, now or earlier, in favour of smaller ones.
        """
        if not self._dropped:
            self.data += data
            self._memory.grown(len(data))
        if self._dropped:
            raise Overloaded(
                "too many large request bodies are arriving at this worker: send the request again", retry_after=1
            )

    def drop(self) -> int:
        """Drop the body and return how many bytes that frees. Its next `add` raises."""
        size, self.data, self._dropped = len(self.data), bytearray(), True
        return size


class BodyMemory:
    """Falcon middleware that limits the memory of incomplete bodies.

    At the limit the largest body is dropped, so that small ones are read whatever other clients send.

    Args:
        limit: bytes of all bodies together.
    """

    def __init__(self, limit: int = _OWN) -> None:
        self._limit = limit
        self._total = 0
        self._bodies: dict[PartialBody, None] = {}

    @property
    def total(self) -> int:
        """Bytes in use."""
        return self._total

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Attach this memory to the request; run before the resource (Falcon)."""
        req.env[_KEY] = self

    @classmethod
    def of(cls, req: falcon.Request) -> BodyMemory:
        """Return the memory of a request; a new one for a request outside the app."""
        found = req.env.get(_KEY)
        return found if isinstance(found, cls) else cls()

    @contextmanager
    def body(self) -> Iterator[PartialBody]:
        """Yield a body whose memory is released at the end of the block."""
        body = PartialBody(self)
        self._bodies[body] = None
        try:
            yield body
        finally:
            del self._bodies[body]
            self._total -= body.drop()

    def grown(self, size: int) -> None:
        """Count bytes that a body has grown by, and drop the largest body at the limit."""
        self._total += size
        while self._total > self._limit:
            self._total -= max(self._bodies, key=lambda body: len(body.data)).drop()
