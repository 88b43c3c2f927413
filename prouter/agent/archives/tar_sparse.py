"""Sparse files in tar archives: where their data belongs. GNU's old format, and its pax formats 0.1 and 1.0.

Only what is no hole is in the archive, all of it in one piece; a map says which part goes where.

Source: the GNU tar manual, "Storing Sparse Files" (D.2); libarchive's tar(5).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from prouter.agent.archives.extraction import refused
from prouter.agent.archives.inbox import Inbox
from prouter.agent.archives.tar_fields import BLOCK, decimal, size_of
from prouter.errors import InvalidRequest

__all__ = ["PREFIX", "Sparse", "gnu_map", "pax_map"]

PREFIX = b"GNU.sparse."
_PARTS_MAX = 1 << 16
_DIGITS_MAX = 18
_ENTRY = 24  # bytes: two numbers of 12


@dataclass(frozen=True, slots=True)
class Sparse:
    """A file's length, and its parts that are no holes as ``(offset, bytes)``, ascending.

    Attributes:
        taken: bytes of the member's data that the map itself took.
    """

    size: int
    parts: list[tuple[int, int]]
    taken: int = 0

    def check(self, stored: int) -> None:
        """Refuse a map that does not fit the `stored` bytes that come.

        Raises:
            InvalidRequest: parts overlap, or do not add up.
        """
        end = 0
        for offset, length in self.parts:
            if offset < end:
                _damaged()
            end = offset + length
        if end > self.size or sum(length for _, length in self.parts) != stored:
            _damaged()


def gnu_map(inbox: Inbox, header: bytes) -> Generator[None, None, Sparse]:
    """The map of GNU's old format, from the header and the blocks that follow it."""
    parts = _entries(header[386:482])
    more = header[482]
    while more:
        yield from inbox.need(BLOCK)
        block = inbox.take(BLOCK)
        parts += _entries(block[:504])
        more = block[504]
        _bound(len(parts))
    return Sparse(size_of(header[483:495]), parts)


def pax_map(inbox: Inbox, records: Mapping[bytes, bytes], stored: int, name: bytes) -> Generator[None, None, Sparse]:
    """The map of a pax format, from the records or from the beginning of the data.

    Args:
        stored: bytes of the member's data.
        name: the member's.
    """
    if b"GNU.sparse.map" in records:
        numbers = [decimal(text) for text in records[b"GNU.sparse.map"].split(b",")]
        return Sparse(decimal(records.get(b"GNU.sparse.size", b"")), _paired(numbers))
    if records.get(b"GNU.sparse.major") != b"1" or records.get(b"GNU.sparse.minor") != b"0":
        raise refused(name, "a sparse file in GNU's pax format 0.0, or one that is not known; use 1.0")
    lines, taken, rest = 1, 0, b""
    numbers = []
    while len(numbers) < lines:
        if taken + BLOCK > stored:
            _damaged()
        yield from inbox.need(BLOCK)
        *texts, rest = (rest + inbox.take(BLOCK)).split(b"\n")
        taken += BLOCK
        numbers += [decimal(text) for text in texts[: lines - len(numbers)]]
        if numbers and lines == 1:
            lines += 2 * numbers[0]
            _bound(numbers[0])
            numbers += [decimal(text) for text in texts[1:lines]]
        if len(numbers) < lines and len(rest) > _DIGITS_MAX:
            _damaged()
    return Sparse(decimal(records.get(b"GNU.sparse.realsize", b"")), _paired(numbers[1:]), taken)


def _entries(data: bytes) -> list[tuple[int, int]]:
    entries = [data[at : at + _ENTRY] for at in range(0, len(data), _ENTRY)]
    return [(size_of(entry[:12]), size_of(entry[12:])) for entry in entries if entry[0]]


def _paired(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        _damaged()
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _bound(count: int) -> None:
    if count > _PARTS_MAX:
        raise InvalidRequest(f"Invalid request: the archive has a sparse file of more than {_PARTS_MAX} parts")


def _damaged() -> None:
    raise InvalidRequest("Invalid request: the archive is damaged: the map of a sparse file does not fit its data")
