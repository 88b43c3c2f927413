"""A tar archive read as it comes: ustar, pax, GNU long names and numbers, and the older v7, into an `Extraction`.

Sources: POSIX.1-2017 pax ("ustar Interchange Format", "pax Header Block"), the GNU tar manual ("Basic Tar Format").
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from prouter.agent.archives.extraction import Extraction, refused
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.agent.archives.tar_fields import BLOCK, decimal, field, number, padded, size_of
from prouter.agent.archives.tar_sparse import PREFIX, gnu_map, pax_map
from prouter.errors import InvalidRequest

__all__ = ["BLOCK", "is_header", "read_tar"]

_EXTENSION_MAX = 1 << 20  # bytes of a pax header or a long name
_PIECE = 1 << 18
_ZEROS = bytes(BLOCK)
_FILE_TYPES = (b"0", b"\0", b"7")
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"M": "part of an archive of several volumes",
}


@dataclass(slots=True)
class _Pending:
    """What extension headers say of the members to come: of the next one (pax, long name), and of all (global pax)."""

    everywhere: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    next: dict[bytes, bytes] = dataclasses.field(default_factory=dict)

    def get(self, key: bytes) -> bytes | None:
        value = self.next.get(key)
        return self.everywhere.get(key) if value is None else value


def is_header(block: bytes) -> bool:
    """Whether the 512 bytes are a tar header: its checksum is right."""
    try:
        return len(block) == BLOCK and _checksum_fits(block, number(block[148:156]))
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
            size = size_of(header[124:136])
            if size > _EXTENSION_MAX:
                raise InvalidRequest("Invalid request: the archive has an extension header of more than 1 MiB")
            yield from inbox.need(padded(size))
            _extend(pending, kind, inbox.take(padded(size))[:size])
            continue
        if kind == b"S" or (kind in _FILE_TYPES and any(key.startswith(PREFIX) for key in pending.next)):
            yield from _sparse(inbox, header, kind, pending, out)
            pending.next = {}
            continue
        size = _begin(header, kind, pending, out)
        pending.next = {}
        if kind in _FILE_TYPES:
            yield from _copy(inbox, out, size)
            out.end_file()
        yield from _skip(inbox, padded(size) - size if kind in _FILE_TYPES else padded(size))


def _begin(header: bytes, kind: bytes, pending: _Pending, out: Extraction) -> int:
    """Make the member, or begin it if it is a file (`_copy` ends it); the bytes of data that follow its header."""
    name = pending.get(b"path") or _name(header)
    mtime_ns = _mtime(header, pending)
    mode = field(header[100:108])
    size = _stored(header, pending)
    if kind in _REFUSED:
        raise refused(name, _REFUSED[kind])
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


def _stored(header: bytes, pending: _Pending) -> int:
    """Bytes of data that follow the header."""
    given = pending.get(b"size")
    return size_of(header[124:136]) if given is None else decimal(given)


def _sparse(inbox: Inbox, header: bytes, kind: bytes, pending: _Pending, out: Extraction) -> Parser:
    """A file with holes, which stay holes."""
    name = pending.get(b"GNU.sparse.name") or pending.get(b"path") or _name(header)
    stored = _stored(header, pending)
    found = yield from gnu_map(inbox, header) if kind == b"S" else pax_map(inbox, pending.next, stored, name)
    data = stored - found.taken
    found.check(data)
    out.file(name, field(header[100:108]), _mtime(header, pending), data)
    for offset, length in found.parts:
        out.skip_to(offset)
        yield from _copy(inbox, out, length)
    out.set_length(found.size)
    out.end_file()
    yield from _skip(inbox, padded(stored) - stored)


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
        ns = int(Decimal(given.decode("ascii")) * 1_000_000_000) if given else field(header[136:148]) * 1_000_000_000
    except (InvalidOperation, UnicodeDecodeError, ValueError, OverflowError):
        return None
    return ns if -(1 << 63) <= ns < 1 << 63 else None


def _checksum_fits(header: bytes, checksum: int) -> bool:
    """The sum of all bytes, the field itself taken as spaces; some old programs summed signed bytes."""
    field = header[148:156]
    unsigned = sum(header) - sum(field) + 8 * 0x20
    if unsigned == checksum:
        return True
    high = sum(byte >= 0x80 for byte in header) - sum(byte >= 0x80 for byte in field)
    return unsigned - 256 * high == checksum
