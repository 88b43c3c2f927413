"""The memory that JSON bodies of all of a worker's clients take together while they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import falcon

from prouter.errors import Overloaded

__all__ = ["BodyMemory", "PartialBody"]

_KEY = "prouter.body_memory"
_OWN = 64 * 1024 * 1024


class PartialBody:
    """A body that is still arriving; `BodyMemory.body` makes it."""

    def __init__(self, memory: BodyMemory) -> None:
        self.data = bytearray()
        self._memory = memory
        self._dropped = False

    def add(self, data: bytes) -> None:
        """Keep more of the body.

        Raises:
            Overloaded: it was given up, now or while nothing came, to make room for smaller ones.
        """
        if not self._dropped:
            self.data += data
            self._memory.grown(len(data))
        if self._dropped:
            raise Overloaded("too many large request bodies are on their way to this worker", retry_after=1)

    def drop(self) -> int:
        """Give it up at once; how many bytes that frees. Its client is told when more of it comes."""
        size, self.data, self._dropped = len(self.data), bytearray(), True
        return size


class BodyMemory:
    """Falcon middleware that lends requests memory for their bodies, up to a bound in all.

    When that is reached the largest body is given up, so that small ones are read whatever others send.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = _OWN) -> None:
        self._limit = limit
        self._total = 0
        self._bodies: dict[PartialBody, None] = {}

    @property
    def total(self) -> int:
        """Bytes lent now."""
        return self._total

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Falcon calls this before the resource."""
        req.env[_KEY] = self

    @classmethod
    def of(cls, req: falcon.Request) -> BodyMemory:
        """The worker's memory; one of its own for a request outside the app."""
        found = req.env.get(_KEY)
        return found if isinstance(found, cls) else cls()

    @contextmanager
    def body(self) -> Iterator[PartialBody]:
        """A body whose memory is given back at the end of the block."""
        body = PartialBody(self)
        self._bodies[body] = None
        try:
            yield body
        finally:
            del self._bodies[body]
            self._total -= body.drop()

    def grown(self, size: int) -> None:
        """A body has grown by so many bytes."""
        self._total += size
        while self._total > self._limit:
            self._total -= max(self._bodies, key=lambda body: len(body.data)).drop()
