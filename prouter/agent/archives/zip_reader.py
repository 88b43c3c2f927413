"""A zip archive read as it comes, by its local headers, into an `Extraction`.

Made for seeking from the end, a zip says two things late. The sizes of a member written by a program that streams come
after its data, which is found by inflating it. What kind of thing a member is, and its mode, come in the central
directory after all members: then modes are set, and files turned into links.

Source: PKWARE's APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import stat
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Generator
from typing import final

from prouter.agent.archives.extraction import Extraction, refused
from prouter.agent.archives.inbox import Inbox, Parser
from prouter.agent.archives.zip_records import (
    CENTRAL,
    END,
    LOCAL,
    LOCATOR,
    MAX16,
    MAX32,
    STORED,
    Local,
    damaged,
    parse_central,
    parse_local,
)
from prouter.agent.paths import shown

__all__ = ["ZipReader"]

_INPUT, _OUTPUT = 1 << 16, 1 << 18  # bytes inflated at once, and of what comes out
_FIRST_INPUT = 1 << 11
_END64_MAX = 1 << 20
_DEFAULT_MODE = 0o644
_UNKNOWN = -1
_DESCRIPTOR = b"PK\7\x08"

_Contents = Generator[None, None, tuple[int, int, int]]  # returns packed bytes, bytes, checksum


@final
class ZipReader:
    """Reads one zip: `read` is its parser.

    Raises:
        InvalidRequest: not a zip, damaged, cut short, encrypted, or packed in a way that cannot be streamed.
        PRouterError: as `Extraction`'s methods.
    """

    def __init__(self, inbox: Inbox, out: Extraction) -> None:
        self._inbox = inbox
        self._out = out
        self._offsets = array("Q")  # of the local headers, ascending, to find those the central directory speaks of
        self._names = array("L")  # checksums of their names
        self._listed = 0

    def read(self) -> Parser:
        """Read one archive to its end record; what follows it is ignored."""
        inbox = self._inbox
        while True:
            yield from inbox.need(4)
            signature = inbox.peek(4)
            if signature == b"PK\3\4":
                yield from self._local()
            elif signature == b"PK\1\2":
                yield from self._central()
            elif signature == b"PK\6\6":
                yield from self._end64()
            elif signature == b"PK\6\7":
                yield from inbox.need(LOCATOR.size)
                inbox.take(LOCATOR.size)
            elif signature == b"PK\5\6":
                yield from inbox.need(END.size)
                self._end(END.unpack(inbox.take(END.size))[4])
                return
            elif signature == b"PK\7\x08" and not inbox.taken:
                inbox.take(4)  # the mark of an archive that might have become several volumes
            else:
                raise damaged("there is no header where one must be")

    def _local(self) -> Parser:
        inbox, start = self._inbox, self._inbox.taken
        yield from inbox.need(LOCAL.size)
        fields = LOCAL.unpack(inbox.take(LOCAL.size))
        yield from inbox.need(fields[9] + fields[10])
        member = parse_local(fields, inbox.take(fields[9]), inbox.take(fields[10]))
        if self._listed:
            raise damaged("a member follows the central directory")
        self._offsets.append(start)
        self._names.append(zlib.crc32(member.name))
        is_directory = member.name.endswith(b"/")
        if is_directory:
            self._out.directory(member.name, None, member.mtime_ns)
        else:
            self._out.file(member.name, _DEFAULT_MODE, member.mtime_ns, None if member.later else member.size)
        packed, size, crc = yield from (self._stored if member.method == STORED else self._inflated)(member)
        if is_directory and size:
            raise damaged(f"directory '{shown(member.name)}' has contents")
        if member.later:
            yield from self._descriptor(member, packed, size, crc)
        elif (member.packed, member.size, member.crc) != (packed, size, crc):
            raise damaged(f"sizes or checksum of '{shown(member.name)}' are wrong")
        if not is_directory:
            self._out.end_file()

    def _stored(self, member: Local) -> _Contents:
        if member.later and not member.size and not member.name.endswith(b"/"):
            return (yield from self._stored_up_to_descriptor(member))
        crc, left = 0, member.size
        while left:
            piece = self._inbox.take(min(left, _OUTPUT))
            if not piece:
                yield from self._inbox.need(1)
                continue
            crc = self._write(member, piece, crc)
            left -= len(piece)
        return member.size, member.size, crc

    def _stored_up_to_descriptor(self, member: Local) -> _Contents:
        """Contents whose length nothing says before them: they end at the descriptor that fits all before it.

        The format leaves a descriptor's signature to the writer, but whoever streams writes it.
        """
        inbox, size, crc = self._inbox, 0, 0
        while True:
            yield from inbox.need(24)  # a descriptor; more than that follows even the last
            at = inbox.find(_DESCRIPTOR)
            if at == 0 and inbox.peek(24).startswith(_descriptors(size, size, crc)):
                return size, size, crc
            if at == 0:
                step = len(_DESCRIPTOR)
            else:
                step = min(at if at > 0 else inbox.available - len(_DESCRIPTOR) + 1, _OUTPUT)
            crc = self._write(member, inbox.take(step), crc)
            size += step

    def _inflated(self, member: Local) -> _Contents:
        inbox, inflater = self._inbox, zlib.decompressobj(-zlib.MAX_WBITS)
        packed = size = crc = 0
        known = _UNKNOWN if member.later else member.packed
        step = _FIRST_INPUT  # grows, as what is taken beyond a small member's end is copied back
        while not inflater.eof:
            data = inbox.take(step if known == _UNKNOWN else min(_INPUT, known - packed))
            step = min(_INPUT, step * 2)
            if not data:
                if packed == known:
                    raise damaged(f"sizes of '{shown(member.name)}' are wrong")
                yield from inbox.need(1)
            packed += len(data)
            more = True
            while more:
                piece = _inflate(inflater, data, member)
                crc = self._write(member, piece, crc)
                size += len(piece)
                data = inflater.unconsumed_tail
                more = not inflater.eof and (len(data) > 0 or len(piece) == _OUTPUT)
        inbox.back(len(inflater.unused_data))
        return packed - len(inflater.unused_data), size, crc

    def _write(self, member: Local, piece: bytes, crc: int) -> int:
        if piece and not member.name.endswith(b"/"):
            self._out.write(piece)
        return zlib.crc32(piece, crc)

    def _descriptor(self, member: Local, packed: int, size: int, crc: int) -> Parser:
        """The record after a member's data, with or without signature, sizes of 4 or 8 bytes: what fits is right."""
        yield from self._inbox.need(24)  # the longest; an end record follows even the shortest
        ahead = self._inbox.peek(24)
        signed = _descriptors(packed, size, crc)
        for record in (*signed, *(record[len(_DESCRIPTOR) :] for record in signed)):
            if ahead.startswith(record):
                self._inbox.take(len(record))
                return
        raise damaged(f"sizes or checksum of '{shown(member.name)}' are wrong")

    def _central(self) -> Parser:
        inbox = self._inbox
        yield from inbox.need(CENTRAL.size)
        fields = CENTRAL.unpack(inbox.take(CENTRAL.size))
        yield from inbox.need(fields[10] + fields[11] + fields[12])
        name, extra, _ = inbox.take(fields[10]), inbox.take(fields[11]), inbox.take(fields[12])
        record = parse_central(fields, name, extra)
        self._listed += 1
        at = bisect_left(self._offsets, record.offset)
        if at == len(self._offsets) or self._offsets[at] != record.offset or self._names[at] != zlib.crc32(name):
            raise damaged(f"the central directory lists '{shown(name)}', which is not there")
        kind = stat.S_IFMT(record.mode)
        if kind == stat.S_IFLNK:
            self._out.turn_into_symlink(name)
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused(name, "a device, fifo or socket")
        elif record.mode and (name.endswith(b"/") or record.mode & 0o777 != _DEFAULT_MODE):
            self._out.set_mode(name, record.mode & 0o777)

    def _end64(self) -> Parser:
        yield from self._inbox.need(12)
        size = int.from_bytes(self._inbox.peek(12)[4:], "little")
        if size > _END64_MAX:
            raise damaged("its end record is too long")
        yield from self._inbox.need(12 + size)
        self._inbox.take(12 + size)

    def _end(self, total: int) -> None:
        if self._listed != len(self._offsets) or total not in (self._listed & MAX16, MAX16):
            raise damaged("its central directory does not list what is in it")


def _descriptors(packed: int, size: int, crc: int) -> tuple[bytes, bytes]:
    """The record after data with these sizes, with its signature, with sizes of 8 bytes and of 4."""
    narrow = struct.pack("<3I", crc, packed & MAX32, size & MAX32)
    return _DESCRIPTOR + struct.pack("<IQQ", crc, packed, size), _DESCRIPTOR + narrow


def _inflate(inflater: zlib._Decompress, data: bytes, member: Local) -> bytes:
    try:
        return inflater.decompress(data, _OUTPUT)
    except zlib.error as error:
        raise damaged(f"the contents of '{shown(member.name)}' do not inflate") from error
