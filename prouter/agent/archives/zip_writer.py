"""Writing of a zip archive while it is sent, with zip64 where sizes need it (APPNOTE.TXT 6.3.10).

Small files are deflated before their header is written, so that it can contain their sizes; larger ones are followed
by a descriptor. Modes and symbolic links are in the central directory as in Info-ZIP, times to 100 ns in NTFS's extra
field.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Generator, Iterator
from typing import final

from prouter.agent.archives.members import Member, Tree
from prouter.agent.archives.zip_records import (
    CENTRAL,
    DEFLATED,
    END,
    END64,
    LOCAL,
    LOCATOR,
    MAX16,
    MAX32,
    SIZES_LATER,
    STORED,
    UNIX,
    UTF8,
    dos_time,
    time_extras,
)
from prouter.agent.sandbox.files import FileHandle
from prouter.errors import Conflict

__all__ = ["ZipWriter"]

_PIECE = 1 << 18
_LEVEL = 1
_CENTRAL_IN_MEMORY = 1 << 20
_WIDE_FROM = MAX32 - (1 << 24)  # bytes; deflate may make incompressible contents a little longer
_ZIP64 = 0x0001
_DOS_DIRECTORY = 0x10
_DEFLATE_FROM = 64  # bytes; shorter contents are stored


_Sizes = tuple[int, int, int, int, int]  # checksum, packed bytes, bytes, method, flags


@final
class ZipWriter:
    """Writes one zip of a tree; `pieces` yields the archive."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._offset = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive's bytes, in pieces of any size."""
        count = 0
        with tempfile.SpooledTemporaryFile(_CENTRAL_IN_MEMORY) as directory:
            for member, handle in self._tree.opened():
                start = self._offset
                if handle is None or member.size <= _PIECE:
                    sizes = yield from self._whole(member, handle)
                else:
                    sizes = yield from self._streamed(member, handle)
                directory.write(_central(member, start, sizes))
                count += 1
            size = directory.tell()
            directory.seek(0)
            while piece := directory.read(_PIECE):
                yield piece
        yield _end(count, size, self._offset)

    def _whole(self, member: Member, handle: FileHandle | None) -> Generator[bytes, None, _Sizes]:
        data = member.target if handle is None else b"".join(self._contents(member, handle))
        crc, method, packed = zlib.crc32(data), STORED, data
        if len(data) > _DEFLATE_FROM:
            deflater = _deflater()
            shorter = deflater.compress(data) + deflater.flush()
            if len(shorter) < len(data):
                method, packed = DEFLATED, shorter
        sizes = (crc, len(packed), len(data), method, 0)
        piece = _local(member, sizes, b"") + packed
        self._offset += len(piece)
        yield piece
        return sizes

    def _streamed(self, member: Member, handle: FileHandle) -> Generator[bytes, None, _Sizes]:
        wide = member.size >= _WIDE_FROM
        zip64 = struct.pack("<HHQQ", _ZIP64, 16, 0, 0) if wide else b""
        empty = MAX32 if wide else 0
        piece = _local(member, (0, empty, empty, DEFLATED, SIZES_LATER), zip64)
        self._offset += len(piece)
        yield piece
        deflater = _deflater()
        crc = packed = size = 0
        for data in self._contents(member, handle):
            crc = zlib.crc32(data, crc)
            size += len(data)
            piece = deflater.compress(data)
            packed += len(piece)
            yield piece
        last = deflater.flush()
        packed += len(last)
        descriptor = struct.pack("<4sIQQ" if wide else "<4s3I", b"PK\7\x08", crc, packed, size)
        self._offset += packed + len(descriptor)
        yield last + descriptor
        return crc, packed, size, DEFLATED, SIZES_LATER

    def _contents(self, member: Member, handle: FileHandle) -> Iterator[bytes]:
        try:
            yield from handle.chunks(n=_PIECE)
        except Conflict:
            self._tree.note(member.path, "became shorter while it was packed")


def _deflater() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


def _name(member: Member) -> tuple[bytes, int]:
    name = member.path + b"/" if member.is_directory else member.path
    try:
        name.decode()
    except UnicodeDecodeError:
        return name, 0
    return name, UTF8


def _local(member: Member, sizes: _Sizes, zip64: bytes) -> bytes:
    crc, packed, size, method, flags = sizes
    name, utf8 = _name(member)
    extra = zip64 + time_extras(member.mtime_ns)
    needed = 45 if zip64 else 20
    fields = (needed, flags | utf8, method, *dos_time(member.mtime_ns), crc, packed, size, len(name), len(extra))
    return LOCAL.pack(b"PK\3\4", *fields) + name + extra


def _central(member: Member, start: int, sizes: _Sizes) -> bytes:
    crc, packed, size, method, flags = sizes
    name, utf8 = _name(member)
    wide = b"".join(struct.pack("<Q", value) for value in (size, packed, start) if value >= MAX32)
    extra = struct.pack("<HH", _ZIP64, len(wide)) + wide if wide else b""
    extra += time_extras(member.mtime_ns)
    version = 45 if wide else 20
    attributes = (member.mode & 0o170777) << 16 | (_DOS_DIRECTORY if member.is_directory else 0)
    fields = (UNIX << 8 | version, version, flags | utf8, method, *dos_time(member.mtime_ns), crc, min(packed, MAX32))
    lengths = (min(size, MAX32), len(name), len(extra), 0, 0, 0, attributes, min(start, MAX32))
    return CENTRAL.pack(b"PK\1\2", *fields, *lengths) + name + extra


def _end(count: int, size: int, offset: int) -> bytes:
    end64 = b""
    if count >= MAX16 or size >= MAX32 or offset >= MAX32:
        fields = (END64.size - 12, UNIX << 8 | 45, 45, 0, 0, count, count, size, offset)
        end64 = END64.pack(b"PK\6\6", *fields) + LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    few = min(count, MAX16)
    return end64 + END.pack(b"PK\5\6", 0, 0, few, few, min(size, MAX32), min(offset, MAX32), 0)
