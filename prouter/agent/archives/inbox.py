"""Bytes that came, for parsers that are generators: they take what they need, and yield when it has not come yet.

A parser is a generator without values: ``yield`` means *more input, please*. It is resumed after each `Inbox.put`, and
after `Inbox.close`, when nothing more will come.
"""

from __future__ import annotations

from collections.abc import Generator

from prouter.errors import InvalidRequest

__all__ = ["Inbox", "Parser"]

Parser = Generator[None, None, None]


class Inbox:
    """A queue of bytes with a position; what has been taken can be put back as long as nothing new came."""

    __slots__ = ("_before", "_data", "_position", "closed")

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._before = 0
        self.closed = False

    def put(self, chunk: bytes) -> None:
        """Append bytes; what was taken is forgotten."""
        self._before += self._position
        if self._position == len(self._data):
            self._data = chunk
        else:
            self._data = self._data[self._position :] + chunk
        self._position = 0

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True

    @property
    def taken(self) -> int:
        """Bytes taken so far: the position in the archive."""
        return self._before + self._position

    @property
    def available(self) -> int:
        """Bytes that can be taken now."""
        return len(self._data) - self._position

    def peek(self, n: int) -> bytes:
        """The next `n` bytes, or fewer if fewer are here, left in place."""
        return self._data[self._position : self._position + n]

    def find(self, mark: bytes) -> int:
        """How far ahead `mark` begins, among the bytes that are here; -1 when it is not."""
        at = self._data.find(mark, self._position)
        return at - self._position if at >= 0 else -1

    def take(self, n: int) -> bytes:
        """The next `n` bytes, or fewer if fewer are here."""
        taken = self._data[self._position : self._position + n]
        self._position += len(taken)
        return taken

    def take_view(self, n: int) -> memoryview:
        """As `take`, without a copy."""
        taken = memoryview(self._data)[self._position : self._position + n]
        self._position += len(taken)
        return taken

    def back(self, n: int) -> None:
        """Put back the `n` bytes taken last."""
        self._position -= n

    def need(self, n: int) -> Parser:
        """Wait until `n` bytes can be taken.

        Raises:
            InvalidRequest: they will never come: the archive is cut short.
        """
        while self.available < n:
            if self.closed:
                raise InvalidRequest("Invalid request: the archive is cut short")
            yield
