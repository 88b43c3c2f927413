"""What the fields of tar headers hold: numbers of two kinds, lengths in blocks."""

from __future__ import annotations

from typing import NoReturn

from prouter.errors import InvalidRequest

__all__ = ["BLOCK", "damaged", "decimal", "field", "number", "padded", "size_of"]

BLOCK = 512


def number(data: bytes) -> int:
    """An octal number, or GNU's base-256 one (first bit set).

    Raises:
        ValueError: neither.
    """
    if data[0] & 0x80:
        value = int.from_bytes(data, "big")
        return value - (1 << 8 * len(data)) if data[0] & 0x40 else value & ((1 << (8 * len(data) - 1)) - 1)
    digits = data.split(b"\0", 1)[0].strip()
    return int(digits, 8) if digits else 0


def field(data: bytes) -> int:
    """As `number`; raises `InvalidRequest`."""
    try:
        return number(data)
    except ValueError:
        damaged()


def size_of(data: bytes) -> int:
    """A size that a file can have; raises `InvalidRequest`."""
    size = field(data)
    return size if 0 <= size < 1 << 63 else damaged()


def decimal(data: bytes) -> int:
    """A size in a pax record; raises `InvalidRequest`."""
    return int(data) if data.isdigit() and len(data) <= 18 else damaged()


def damaged() -> NoReturn:
    """Say that a number is none."""
    raise InvalidRequest("Invalid request: the archive is damaged: a number in a tar header is malformed")


def padded(size: int) -> int:
    """Bytes of the blocks that hold `size` bytes."""
    return -(-size // BLOCK) * BLOCK
