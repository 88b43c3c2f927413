"""Bytes that tell their own position, so that a lost, repeated or moved piece is found at its first byte.

Standard library only; job servers run it too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["BLOCK", "Checker", "Pattern"]

BLOCK = 1024 * 1024
_PAGE = 4096
_MARK = struct.Struct(">QQ")


class Pattern:
    """An endless sequence of bytes for each `seed`; every page of 4 KiB begins with the seed and its own number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        filler = bytes((seed * 7 + index * 31) % 256 for index in range(_PAGE))
        self._base = bytearray(filler * (BLOCK // _PAGE))

    def block(self, number: int) -> bytes:
        """Return the `number`-th MiB."""
        base, first = self._base, number * (BLOCK // _PAGE)
        for page in range(BLOCK // _PAGE):
            _MARK.pack_into(base, page * _PAGE, self._seed, first + page)
        return bytes(base)

    def blocks(self, size: int, piece: int = BLOCK) -> Iterator[bytes]:
        """Yield the first `size` bytes in pieces of at most `piece` bytes."""
        for number in range((size + BLOCK - 1) // BLOCK):
            block = self.block(number)[: size - number * BLOCK]
            for start in range(0, len(block), piece):
                yield block[start : start + piece]


class Checker:
    """Compares what arrives with a pattern.

    Attributes:
        position: bytes that arrived so far, all of them right.
    """

    def __init__(self, seed: int) -> None:
        self._pattern = Pattern(seed)
        self._number = -1
        self._block = b""
        self.position = 0

    def feed(self, data: bytes) -> None:
        """Check the next bytes.

        Raises:
            ValueError: they are not what belongs here.
        """
        view = memoryview(data)
        while view:
            number, start = divmod(self.position, BLOCK)
            if number != self._number:
                self._number, self._block = number, self._pattern.block(number)
            part = view[: BLOCK - start]
            if part != memoryview(self._block)[start : start + len(part)]:
                raise ValueError(f"wrong bytes somewhere in {self.position}..{self.position + len(part)}")
            self.position += len(part)
            view = view[len(part) :]
