"""Records of a zip archive as bytes, for writing.

Sources: PKWARE's APPNOTE.TXT 6.3.10 (4.3 to 4.5); Info-ZIP's proginfo/extrafld.txt for the extra fields of times.
"""

from __future__ import annotations

import struct
import time

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
    "dos_time",
    "time_extras",
]

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
SIZES_LATER, UTF8 = 0x0008, 0x0800
UNIX = 3  # upper byte of "version made by": the external attributes hold a mode

_NTFS, _UNIX_TIME = 0x000A, 0x5455
_FILETIME_EPOCH = 11_644_473_600  # seconds from 1601 to 1970


def time_extras(mtime_ns: int) -> bytes:
    """Return the extra fields for a time: Info-ZIP's (seconds, where they fit) and NTFS's (100 ns)."""
    seconds, ticks = mtime_ns // 1_000_000_000, mtime_ns // 100 + _FILETIME_EPOCH * 10_000_000
    extra = b""
    if -(1 << 31) <= seconds < 1 << 31:
        extra += struct.pack("<HHBi", _UNIX_TIME, 5, 1, seconds)
    if 0 <= ticks < 1 << 63:
        extra += struct.pack("<HHIHH3Q", _NTFS, 32, 0, 1, 24, ticks, ticks, ticks)
    return extra


def dos_time(mtime_ns: int) -> tuple[int, int]:
    """Return time and date for zip's oldest fields: local time, even seconds, 1980 to 2107."""
    year, month, day, hour, minute, second = time.localtime(min(max(mtime_ns // 1_000_000_000, 0), 1 << 32))[:6]
    if year < 1980:
        return 0, 1 << 5 | 1
    return hour << 11 | minute << 5 | second // 2, min(year - 1980, 127) << 9 | month << 5 | day
