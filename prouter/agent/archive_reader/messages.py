"""Messages of the archive reader to the agent over a pipe: a kind and a length, then as many bytes.

A member is an ENTRY; a file's is followed by its DATA, pieces in ascending order with holes between them, and END.
The last message is DONE or FAILED.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "DATA",
    "DIRECTORY",
    "DONE",
    "END",
    "ENTRY",
    "FAILED",
    "FILE",
    "HARDLINK",
    "HEADER",
    "LENGTH",
    "LINKED_FILE",
    "NO_LIBRARY",
    "NO_MEMORY",
    "OFFSET",
    "OTHER",
    "PAYLOAD_MAX",
    "SYMLINK",
    "UNREADABLE",
    "Entry",
]

HEADER = struct.Struct("<cI")
"""A message's kind, and bytes of its payload."""
PAYLOAD_MAX = 1 << 24
"""Largest payload in bytes; a larger one did not come from our code."""

ENTRY = b"E"
"""Payload: an `Entry`."""
DATA = b"D"
"""Payload: `OFFSET` in the file, then the bytes at that offset."""
END = b"."
"""The file is complete. Payload: `LENGTH`, bytes of the file with its holes, -1 if that is unknown."""
DONE = b"Z"
"""The archive has been read to its end. No payload."""
FAILED = b"!"
"""Payload: a byte with the reason (below), then a text in UTF-8."""
OFFSET = LENGTH = struct.Struct("<q")

UNREADABLE, NO_MEMORY, NO_LIBRARY = b"u", b"m", b"l"

FILE, DIRECTORY, SYMLINK, HARDLINK, OTHER = b"f", b"d", b"s", b"h", b"o"
LINKED_FILE = b"L"
"""A hard link that has the contents of the file (in cpio, the last of a file's names)."""

_FIXED = struct.Struct("<cIqBI")
_HAS_TIME = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One member.

    Attributes:
        kind: FILE, DIRECTORY, SYMLINK, HARDLINK, LINKED_FILE or OTHER (a device, fifo or socket).
        mode: permission bits.
        mtime_ns: nanoseconds since the epoch, None if there is none.
        target: of a link.
    """

    kind: bytes
    name: bytes
    mode: int
    mtime_ns: int | None = None
    target: bytes = b""

    def encode(self) -> bytes:
        """Return the message's payload."""
        has = 0 if self.mtime_ns is None else _HAS_TIME
        return _FIXED.pack(self.kind, self.mode, self.mtime_ns or 0, has, len(self.name)) + self.name + self.target

    @classmethod
    def decode(cls, payload: bytes) -> Entry:
        """Return the member in a payload.

        Raises:
            struct.error: it is too short.
        """
        kind, mode, mtime_ns, has, length = _FIXED.unpack_from(payload)
        end = _FIXED.size + length
        return cls(kind, payload[_FIXED.size : end], mode, mtime_ns if has else None, payload[end:])
