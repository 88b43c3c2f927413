"""Fields of tar headers: numbers of two kinds, names, checksums, pax records.

Sources: POSIX.1-2017 pax ("ustar Interchange Format", "pax Header Block"), the GNU tar manual ("Basic Tar Format").
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

__all__ = ["BLOCK", "is_header", "name_of", "number", "padded", "records", "seconds_as_ns"]

BLOCK = 512
_DIGITS_MAX = 18


def number(data: bytes) -> int:
    """Parse an octal number, or GNU's base-256 one (first bit set).

    Raises:
        ValueError: neither.
    """
    if data[0] & 0x80:
        value = int.from_bytes(data, "big")
        return value - (1 << 8 * len(data)) if data[0] & 0x40 else value & ((1 << (8 * len(data) - 1)) - 1)
    digits = data.split(b"\0", 1)[0].strip()
    return int(digits, 8) if digits else 0


def padded(size: int) -> int:
    """Return the bytes of the blocks that hold `size` bytes."""
    return -(-size // BLOCK) * BLOCK


def is_header(block: bytes) -> bool:
    """Return whether the 512 bytes are a tar header, by its checksum."""
    try:
        return len(block) == BLOCK and _checksum_fits(block, number(block[148:156]))
    except ValueError:
        return False


def _checksum_fits(header: bytes, checksum: int) -> bool:
    """Return the sum of all bytes, with the checksum field as spaces; some old programs summed signed bytes."""
    field = header[148:156]
    unsigned = sum(header) - sum(field) + 8 * 0x20
    if unsigned == checksum:
        return True
    high = sum(byte >= 0x80 for byte in header) - sum(byte >= 0x80 for byte in field)
    return unsigned - 256 * high == checksum


def name_of(header: bytes) -> bytes:
    """Return the name in the header itself, with ustar's prefix."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def records(data: bytes) -> dict[bytes, bytes]:
    """Parse the ``<length> <key>=<value>\\n`` records of a pax header; values stay bytes, whatever hdrcharset says.

    Raises:
        ValueError: malformed.
    """
    found = {}
    while data:
        digits, _, _ = data[: _DIGITS_MAX + 1].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 1 < length <= len(data) or data[length - 1] != 0x0A:
            raise ValueError("a pax record is malformed")
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        found[key] = value
        data = data[length:]
    return found


def seconds_as_ns(value: bytes | int) -> int | None:
    """Return a time in seconds as nanoseconds; None if it is not a number, or not a time that a file can have."""
    try:
        seconds = Decimal(value if isinstance(value, int) else value.decode("ascii"))
        ns = int(seconds * 1_000_000_000)
    except (InvalidOperation, UnicodeDecodeError, ValueError, OverflowError):
        return None
    return ns if -(1 << 63) <= ns < 1 << 63 else None
