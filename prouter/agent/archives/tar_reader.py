"""Reading of an ordinary tar archive in the agent itself, while it arrives: ustar, pax, GNU long names, and old v7.

It is fast for what nearly all uploads are, and needs no library. It reads files, directories and links with ordinary
headers. At the first other member (sparse files, devices, damage) it stops, and libarchive continues from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from prouter.agent.archives.extraction import Extraction
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.agent.archives.tar_fields import BLOCK, is_header, name_of, number, padded, records, seconds_as_ns

__all__ = ["TarReader"]

_EXTENSION_MAX = 1 << 20  # bytes of a pax header or a long name
_PIECE = 1 << 18
_ZEROS = bytes(BLOCK)
_SIZE_MAX = 1 << 60
_DIGITS_MAX = 18
_EXTENSIONS_MAX = 8  # blocks and bodies of a member's extension headers
_FILES = (b"0", b"\0")
_EXTENSIONS = (b"x", b"L", b"K", b"g")
_USED = frozenset((b"path", b"linkpath", b"size", b"mtime"))
_IGNORED = frozenset(b"atime ctime uid gid uname gname comment hdrcharset charset".split())
_IGNORED_FAMILIES = (b"SCHILY.xattr.", b"SCHILY.acl.", b"LIBARCHIVE.", b"RHT.security.", b"MSWINDOWS.")


@dataclass(slots=True)
class _Member:
    """The current member.

    Attributes:
        raw: all of its headers as received, for libarchive if it has to continue.
        said: values of its extension headers.
    """

    raw: list[bytes] = field(default_factory=list)
    said: dict[bytes, bytes] = field(default_factory=dict)


class _Unusual(Exception):
    """A header has something unusual, which is left to libarchive."""


@final
class TarReader:
    """Reads one tar: the parser `read` ends at the archive's end mark or at an unusual member.

    Attributes:
        ended: whether the end mark was seen; an archive may also end without one, between two members.
        unread: None, or the headers of the unusual member at which it stopped; the bytes after them are in the inbox.
    """

    def __init__(self, inbox: Inbox, out: Extraction) -> None:
        self._inbox = inbox
        self._out = out
        self.ended = False
        self.unread: bytes | None = None

    def read(self) -> Parser:
        """Read members until the archive ends or is unusual.

        Raises:
            InvalidRequest: cut short within a member.
            PRouterError: as `Extraction`'s methods.
        """
        inbox, member = self._inbox, _Member()
        while True:
            while not inbox.available and not inbox.closed:
                yield
            if not inbox.available and not member.raw:
                return  # without an end mark, which GNU tar accepts, too
            if inbox.available < BLOCK:
                yield from inbox.need(BLOCK)
            header = inbox.take(BLOCK)
            if header == _ZEROS and not member.raw:
                self.ended = True
                return
            member.raw.append(header)
            try:
                yield from self._member(header, member)
            except (_Unusual, ValueError):
                self.unread = b"".join(member.raw)
                return
            if header[156:157] not in _EXTENSIONS:
                member = _Member()

    def _member(self, header: bytes, member: _Member) -> Parser:
        """Create the member if it is ordinary, or remember the values of an extension header for the next one.

        Raises:
            _Unusual, ValueError: nothing was created, and only headers were consumed.
        """
        if not is_header(header):
            raise _Unusual
        kind, size = header[156:157], number(header[124:136])
        if kind in _EXTENSIONS:
            if not 0 <= size <= _EXTENSION_MAX or len(member.raw) > _EXTENSIONS_MAX:
                raise _Unusual
            yield from self._inbox.need(padded(size))
            data = self._inbox.take(padded(size))
            member.raw.append(data)
            _extend(member, kind, data[:size])
            return
        said = member.said
        name = said.get(b"path") or name_of(header)
        mode = number(header[100:108])
        mtime_ns = seconds_as_ns(said.get(b"mtime") or number(header[136:148]))
        size = _decimal(said[b"size"]) if b"size" in said else size
        target = said.get(b"linkpath") or header[157:257].split(b"\0", 1)[0]
        if not name or not 0 <= size <= _SIZE_MAX or (kind == b"1" and size):
            raise _Unusual  # some old programs repeat the contents after a hard link, others do not
        if kind == b"5" or (kind in _FILES and name.endswith(b"/")):  # v7 has no type for directories
            self._out.directory(name, mode, mtime_ns)
        elif kind == b"1":
            self._out.hardlink(name, target)
        elif kind == b"2":
            self._out.symlink(name, target, mtime_ns)
        elif kind in _FILES:
            self._out.file(name, mode, mtime_ns, size)
            yield from self._contents(size)
        else:
            raise _Unusual

    def _contents(self, size: int) -> Parser:
        inbox, left = self._inbox, size
        while left:
            piece = inbox.take_view(min(left, _PIECE))
            if piece:
                self._out.write(piece)
                left -= len(piece)
            else:
                yield from inbox.need(1)
        self._out.end_file()
        rest = padded(size) - size
        if inbox.available < rest:
            yield from inbox.need(rest)
        inbox.take(rest)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > _DIGITS_MAX:
        raise ValueError("a pax record holds no size")
    return int(text)


def _extend(member: _Member, kind: bytes, data: bytes) -> None:
    if kind == b"L":
        member.said[b"path"] = data.split(b"\0", 1)[0]
    elif kind == b"K":
        member.said[b"linkpath"] = data.split(b"\0", 1)[0]
    else:
        found = records(data)
        used = _USED if kind == b"x" else frozenset()
        for key, value in found.items():
            if key in used:
                member.said[key] = value
            elif key not in _IGNORED and not key.startswith(_IGNORED_FAMILIES):
                raise _Unusual
