"""Writing of tar headers: ustar where possible, pax records for the rest (POSIX.1-2017, "pax Interchange Format").

Times keep their nanoseconds, names any bytes. Owners are not written.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from prouter.agent.archives.members import Member

__all__ = ["BLOCK", "END", "filler", "header", "last_filler", "padding"]

BLOCK = 512
END = bytes(2 * BLOCK)
_OCTAL_MAX = 8**11
_FILLER = 1 << 16  # bytes of one comment that fills a gap


def padding(size: int) -> int:
    """Return the zeros that follow contents of `size` bytes."""
    return -size % BLOCK


def header(member: Member) -> bytes:
    """Return the header of a member, preceded by a pax header where ustar cannot express all of it."""
    records: list[tuple[bytes, bytes]] = []
    name = member.path + b"/" if member.is_directory else member.path
    prefix, short = _split(name)
    if short is None:
        records.append((b"path", name))
        prefix, short = b"", name[:100]
    target, size = member.target, member.size
    if len(target) > 100:
        records.append((b"linkpath", target))
    if size >= _OCTAL_MAX:
        records.append((b"size", b"%d" % size))
        size = 0
    seconds, fraction = divmod(member.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds < _OCTAL_MAX:
        records.append((b"mtime", _decimal(member.mtime_ns)))
        seconds = min(max(seconds, 0), _OCTAL_MAX - 1)
    kind = b"5" if member.is_directory else b"0" if member.is_file else b"2"
    block = _block(short, prefix, stat.S_IMODE(member.mode) & 0o777, size, seconds, kind, target[:100])
    return _pax(b"x", records) + block if records else block


def filler(size: int) -> Iterator[bytes]:
    """Return `size` bytes of comments, in place of members that vanished after their size was promised.

    Args:
        size: a multiple of 512, 0 or at least 1024. A member must follow: some readers reject a comment at the end.
    """
    while size:
        body = min(_FILLER, size) - BLOCK
        if size - body == 2 * BLOCK:
            body -= BLOCK  # else a single block would remain, too short for a comment
        start = b"%d comment=vanished while it was packed" % body
        yield _block(b"pax_global_header", b"", 0o644, body, 0, b"g", b"") + start.ljust(body - 1, b".") + b"\n"
        size -= BLOCK + body


def last_filler(size: int) -> Iterator[bytes]:
    """Return `filler` bytes for the end of the archive: an empty file, whose name says so, follows the comments."""
    if size:
        empty = _block(b".vanished-while-it-was-packed", b"", 0o644, 0, 0, b"0", b"")
        rest = size - BLOCK
        if rest == BLOCK:
            yield empty
        else:
            yield from filler(rest)
        yield empty


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Return the name as ustar's prefix and name fields, or None if it does not fit."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", len(name) - 101, min(156, len(name) - 1))
    return (b"", None) if cut < 1 else (name[:cut], name[cut + 1 :])


def _decimal(ns: int) -> bytes:
    seconds, fraction = divmod(abs(ns), 1_000_000_000)
    return (b"-" if ns < 0 else b"") + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _pax(kind: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    if any(not _is_utf8(value) for _, value in records):
        records = [(b"hdrcharset", b"BINARY"), *records]
    body = b"".join(_record(key, value) for key, value in records)
    return _block(b"././@PaxHeader", b"", 0o644, len(body), 0, kind, b"") + body + bytes(padding(len(body)))


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``<length> <key>=<value>\\n``, where the length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d%s" % (length, rest)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _block(name: bytes, prefix: bytes, mode: int, size: int, seconds: int, kind: bytes, target: bytes) -> bytes:
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, 0, 0, size, seconds)
    tail = b"%s%sustar\00000%s%s%s%s" % (
        kind,
        target.ljust(100, b"\0"),
        bytes(64),
        b"0000000\0" * 2,
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    return b"%s%06o\0 %s" % (head, sum(head) + sum(tail) + 8 * 0x20, tail)
