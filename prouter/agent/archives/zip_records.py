"""The records of a zip archive as data: parsed from bytes and made into bytes, nothing read or written.

Sources: PKWARE's APPNOTE.TXT 6.3.10 (4.3 to 4.5); Info-ZIP's proginfo/extrafld.txt for the extra fields of times.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from prouter.agent.paths import shown
from prouter.errors import InvalidRequest

__all__ = [
    "CENTRAL",
    "DEFLATED",
    "END",
    "END64",
    "LOCAL",
    "LOCATOR",
    "MAX16",
    "MAX32",
    "SIZES_LATER",
    "STORED",
    "UNIX",
    "UTF8",
    "Central",
    "Local",
    "damaged",
    "dos_time",
    "parse_central",
    "parse_local",
    "time_extras",
]

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
ENCRYPTED, SIZES_LATER, UTF8 = 0x0001, 0x0008, 0x0800
UNIX = 3  # upper byte of "version made by": the external attributes hold a mode

_ZIP64, _NTFS, _UNIX_TIME = 0x0001, 0x000A, 0x5455
_FILETIME_EPOCH = 11_644_473_600  # seconds from 1601 to 1970
_METHODS = {1: "shrunk", 6: "imploded", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd"}


@dataclass(frozen=True, slots=True)
class Local:
    """A local header. With `later`, checksum and sizes come after the data, and those here may be zero."""

    name: bytes
    method: int
    crc: int
    packed: int
    size: int
    mtime_ns: int | None
    later: bool


@dataclass(frozen=True, slots=True)
class Central:
    """What a central directory record adds: the member's mode (0: not known) and where its local header is."""

    name: bytes
    mode: int
    offset: int


def damaged(what: str) -> InvalidRequest:
    """The error for an archive that is no proper zip, `what` says where."""
    return InvalidRequest(f"Invalid request: the archive is damaged: {what}")


def parse_local(fields: tuple[int, ...], name: bytes, extra: bytes) -> Local:
    """A local header from `LOCAL`'s fields and what follows them.

    Raises:
        InvalidRequest: encrypted, or packed with a method other than store and deflate.
    """
    _, _, flags, method, dos, date, crc, packed, size = fields[:9]
    if flags & ENCRYPTED:
        raise InvalidRequest(f"Invalid request: archive member '{shown(name)}' is encrypted")
    if method not in (STORED, DEFLATED):
        how = _METHODS.get(method, f"method {method}")
        raise InvalidRequest(f"Invalid request: archive member '{shown(name)}' is packed with {how}; use deflate")
    extras = _extras(extra)
    wide = extras.get(_ZIP64, b"")
    size, wide = _widened(size, wide)
    packed, wide = _widened(packed, wide)
    return Local(name, method, crc, packed, size, _mtime(extras, date, dos), bool(flags & SIZES_LATER))


def parse_central(fields: tuple[int, ...], name: bytes, extra: bytes) -> Central:
    """A central directory record from `CENTRAL`'s fields and what follows them."""
    wide = _extras(extra).get(_ZIP64, b"")
    size, packed, offset = fields[9], fields[8], fields[16]
    for value in (size, packed):
        _, wide = _widened(value, wide)
    offset, _ = _widened(offset, wide)
    return Central(name, fields[15] >> 16 if fields[1] >> 8 == UNIX else 0, offset)


def _widened(value: int, wide: bytes) -> tuple[int, bytes]:
    """The value, from the zip64 extra field where the header's own is too small for it, and what is left of that."""
    if value != MAX32 or len(wide) < 8:
        return value, wide
    return int.from_bytes(wide[:8], "little"), wide[8:]


def _extras(extra: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        found.setdefault(tag, extra[4 : 4 + size])
        extra = extra[4 + size :]
    return found


def _mtime(extras: dict[int, bytes], date: int, dos: int) -> int | None:
    """Nanoseconds since the epoch from the most exact field there is; None when there is no sensible one."""
    ntfs = extras.get(_NTFS, b"")
    if len(ntfs) >= 16 and ntfs[4:8] == b"\1\0\x18\0":
        return (int.from_bytes(ntfs[8:16], "little") - _FILETIME_EPOCH * 10_000_000) * 100
    unix = extras.get(_UNIX_TIME, b"")
    if len(unix) >= 5 and unix[0] & 1:
        return int.from_bytes(unix[1:5], "little", signed=True) * 1_000_000_000
    local = (1980 + (date >> 9), date >> 5 & 15, date & 31, dos >> 11, dos >> 5 & 63, (dos & 31) * 2, 0, 0, -1)
    try:
        return int(time.mktime(local)) * 1_000_000_000
    except (OverflowError, ValueError):
        return None


def time_extras(mtime_ns: int) -> bytes:
    """The extra fields that hold a time: Info-ZIP's (seconds, where they fit) and NTFS's (100 ns)."""
    seconds, ticks = mtime_ns // 1_000_000_000, mtime_ns // 100 + _FILETIME_EPOCH * 10_000_000
    extra = b""
    if -(1 << 31) <= seconds < 1 << 31:
        extra += struct.pack("<HHBi", _UNIX_TIME, 5, 1, seconds)
    if 0 <= ticks < 1 << 63:
        extra += struct.pack("<HHIHH3Q", _NTFS, 32, 0, 1, 24, ticks, ticks, ticks)
    return extra


def dos_time(mtime_ns: int) -> tuple[int, int]:
    """Time and date as zip's oldest fields hold them: local time, even seconds, 1980 to 2107."""
    year, month, day, hour, minute, second = time.localtime(min(max(mtime_ns // 1_000_000_000, 0), 1 << 32))[:6]
    if year < 1980:
        return 0, 1 << 5 | 1
    return hour << 11 | minute << 5 | second // 2, min(year - 1980, 127) << 9 | month << 5 | day
