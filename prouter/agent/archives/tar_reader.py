"""A tar archive read as it comes: ustar, pax, GNU long names and numbers, and the older v7, into an `Extraction`.

Sources: POSIX.1-2017 pax ("ustar Interchange Format", "pax Header Block"), the GNU tar manual ("Basic Tar Format").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import NoReturn

from prouter.agent.archives.extraction import Extraction, refused
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.errors import InvalidRequest

__all__ = ["BLOCK", "is_header", "read_tar"]

BLOCK = 512
_EXTENSION_MAX = 1 << 20  # bytes of a pax header or a long name
_PIECE = 1 << 18
_ZEROS = bytes(BLOCK)
_FILE_TYPES = (b"0", b"\0", b"7")
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file in GNU's own format",
    b"M": "part of an archive of several volumes",
}


@dataclass(slots=True)
class _Pending:
    """What extension headers say of the members to come: of the next one (pax, long name), and of all (global pax)."""

    everywhere: dict[bytes, bytes] = field(default_factory=dict)
    next: dict[bytes, bytes] = field(default_factory=dict)

    def get(self, key: bytes) -> bytes | None:
        value = self.next.get(key)
        return self.everywhere.get(key) if value is None else value


def is_header(block: bytes) -> bool:
    """Whether the 512 bytes are a tar header: its checksum is right."""
    try:
        return len(block) == BLOCK and _checksum_fits(block, _number(block[148:156]))
    except ValueError:
        return False


def read_tar(inbox: Inbox, out: Extraction) -> Parser:
    """Read one archive to its end mark; what follows it is ignored.

    Raises:
        InvalidRequest: not a tar, damaged, cut short, or with a member of a kind that is refused.
        PRouterError: as `Extraction`'s methods.
    """
    pending = _Pending()
    while True:
        if inbox.available < BLOCK:
            yield from inbox.need(BLOCK)
        header = inbox.take(BLOCK)
        if header == _ZEROS:
            return
        if not is_header(header):
            raise InvalidRequest("Invalid request: the archive is damaged: a tar header's checksum is wrong")
        kind = header[156:157]
        if kind in b"xgLKXN":
            size = _size(header[124:136])
            if size > _EXTENSION_MAX:
                raise InvalidRequest("Invalid request: the archive has an extension header of more than 1 MiB")
            yield from inbox.need(_padded(size))
            _extend(pending, kind, inbox.take(_padded(size))[:size])
            continue
        size = _begin(header, kind, pending, out)
        pending.next = {}
        if kind in _FILE_TYPES:
            yield from _copy(inbox, out, size)
        yield from _skip(inbox, _padded(size) - size if kind in _FILE_TYPES else _padded(size))


def _begin(header: bytes, kind: bytes, pending: _Pending, out: Extraction) -> int:
    """Make the member, or begin it if it is a file (`_copy` ends it); the bytes of data that follow its header."""
    name = pending.get(b"path") or _name(header)
    mtime_ns = _mtime(header, pending)
    mode = _field(header[100:108])
    given = pending.get(b"size")
    size = _size(header[124:136]) if given is None else _decimal(given)
    if kind in _REFUSED:
        raise refused(name, _REFUSED[kind])
    if any(key.startswith(b"GNU.sparse.") for key in pending.next):
        raise refused(pending.get(b"GNU.sparse.name") or name, "a sparse file")
    if kind in (b"1", b"2"):
        target = pending.get(b"linkpath") or header[157:257].split(b"\0", 1)[0]
        if kind == b"1":
            out.hardlink(name, target)
            return 0
        out.symlink(name, target, mtime_ns)
        return 0
    if kind in (b"5", b"D") or (kind in _FILE_TYPES and name.endswith(b"/")):
        out.directory(name, mode, mtime_ns)
        return size if kind == b"D" else 0
    if kind == b"V":
        return 0
    if kind not in _FILE_TYPES:
        raise refused(name, f"of the unknown kind {kind!r}")
    out.file(name, mode, mtime_ns, size)
    return size


def _copy(inbox: Inbox, out: Extraction, size: int) -> Parser:
    while size:
        piece = inbox.take_view(min(size, _PIECE))
        if piece:
            out.write(piece)
            size -= len(piece)
        else:
            yield from inbox.need(1)
    out.end_file()


def _skip(inbox: Inbox, size: int) -> Parser:
    while size:
        if not inbox.available:
            yield from inbox.need(1)
        size -= len(inbox.take(min(size, _PIECE)))


def _extend(pending: _Pending, kind: bytes, data: bytes) -> None:
    if kind == b"L":
        pending.next[b"path"] = data.split(b"\0", 1)[0]
    elif kind == b"K":
        pending.next[b"linkpath"] = data.split(b"\0", 1)[0]
    elif kind == b"g":
        pending.everywhere.update(_records(data))
    elif kind in b"xX":
        pending.next.update(_records(data))


def _records(data: bytes) -> dict[bytes, bytes]:
    """The ``<length> <key>=<value>\\n`` records of a pax header; values stay bytes, whatever hdrcharset says."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data) or data[int(length) - 1] != 0x0A:
            raise InvalidRequest("Invalid request: the archive is damaged: a pax header is malformed")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key] = value
        data = data[int(length) :]
    return records


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _mtime(header: bytes, pending: _Pending) -> int | None:
    """Nanoseconds since the epoch; a time that is no number, or none a file can have, is left out."""
    given = pending.get(b"mtime")
    try:
        ns = int(Decimal(given.decode("ascii")) * 1_000_000_000) if given else _field(header[136:148]) * 1_000_000_000
    except (InvalidOperation, UnicodeDecodeError, ValueError, OverflowError):
        return None
    return ns if -(1 << 63) <= ns < 1 << 63 else None


def _field(data: bytes) -> int:
    try:
        return _number(data)
    except ValueError:
        _damaged()


def _size(data: bytes) -> int:
    size = _field(data)
    return size if 0 <= size < 1 << 63 else _damaged()


def _decimal(data: bytes) -> int:
    return int(data) if data.isdigit() and len(data) <= 18 else _damaged()


def _damaged() -> NoReturn:
    raise InvalidRequest("Invalid request: the archive is damaged: a number in a tar header is malformed")


def _number(data: bytes) -> int:
    """An octal number, or GNU's base-256 one (first bit set)."""
    if data[0] & 0x80:
        value = int.from_bytes(data, "big")
        return value - (1 << 8 * len(data)) if data[0] & 0x40 else value & ((1 << (8 * len(data) - 1)) - 1)
    digits = data.split(b"\0", 1)[0].strip()
    return int(digits, 8) if digits else 0


def _checksum_fits(header: bytes, checksum: int) -> bool:
    """The sum of all bytes, the field itself taken as spaces; some old programs summed signed bytes."""
    field = header[148:156]
    unsigned = sum(header) - sum(field) + 8 * 0x20
    if unsigned == checksum:
        return True
    high = sum(byte >= 0x80 for byte in header) - sum(byte >= 0x80 for byte in field)
    return unsigned - 256 * high == checksum


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
