"""Received bytes for parsers that are generators: a parser takes the bytes it needs, and yields while they are missing.

A parser is a generator without values: ``yield`` means *more input, please*. Its owner resumes it after each
`Inbox.put`, and after `Inbox.close`, when no more bytes will come.
"""

from __future__ import annotations

from collections.abc import Generator

from prouter.errors import InvalidRequest

__all__ = ["Inbox", "Parser"]

Parser = Generator[None, None, None]


class Inbox:
    """A queue of bytes with a position; taken bytes can be put back until the next `put`."""

    __slots__ = ("_before", "_data", "_position", "closed")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._before = 0
        self.closed = False

    def put(self, chunk: bytes) -> None:
        """Append bytes and forget those that were taken."""
        self._before += self._position
        if self._position == len(self._data):
            self._data = chunk
        else:
            self._data = self._data[self._position :] + chunk
        self._position = 0

    def close(self) -> None:
        """Note that no more bytes will come."""
        self.closed = True

    @property
    def taken(self) -> int:
        """The number of bytes taken so far, which is the position in the archive."""
        return self._before + self._position

    @property
    def available(self) -> int:
        """The number of bytes that can be taken now."""
        return len(self._data) - self._position

    def peek(self, n: int) -> bytes:
        """Return the next `n` bytes, or fewer if fewer are available, and leave them in place."""
        return self._data[self._position : self._position + n]

    def find(self, mark: bytes) -> int:
        """Return how far ahead `mark` begins in the available bytes; -1 if it is not there."""
        at = self._data.find(mark, self._position)
        return at - self._position if at >= 0 else -1

    def take(self, n: int) -> bytes:
        """Take the next `n` bytes, or fewer if fewer are available."""
        taken = self._data[self._position : self._position + n]
        self._position += len(taken)
        return taken

    def take_view(self, n: int) -> memoryview:
        """Take bytes as `take` does, without a copy."""
        taken = memoryview(self._data)[self._position : self._position + n]
        self._position += len(taken)
        return taken

    def back(self, n: int) -> None:
        """Put back the `n` bytes taken last."""
        self._position -= n

    def need(self, n: int) -> Parser:
        """Wait until `n` bytes can be taken.

        Raises:
            InvalidRequest: the archive ends before them.
        """
        while self.available < n:
            if self.closed:
                raise InvalidRequest("Invalid request: the archive is cut short")
            yield
