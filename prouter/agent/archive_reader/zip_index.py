"""Facts of a zip's central directory that libarchive 3.6 does not pass on: exact times and checksums of members.

It also marks members whose names have backslashes. These are separators only if a program for DOS or Windows made the
archive; libarchive decides that by a mark in the local header.

Source: PKWARE's APPNOTE.TXT 6.3.10 (4.3.12 to 4.3.16, 4.4.2, 4.5.5).
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from typing import BinaryIO

from prouter.agent.archive_reader.libarchive import ArchiveError

__all__ = ["About", "ZipIndex"]

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_RECORD = struct.Struct("<4s6H3I5H2I")
_MARK, _LOCAL, _SPANNED = b"PK\5\6", b"PK\3\4", b"PK\7\x08"
_SEARCHED = 1 << 16  # bytes read at once
_TRAILER_MAX = 64 << 20  # bytes that may follow an archive
_MAX32 = 0xFFFFFFFF
_ZIP64, _NTFS = 0x0001, 0x000A
_DOS, _UNIX, _WINDOWS = 0, 3, 10
_FILETIME_EPOCH = 11_644_473_600  # seconds from 1601 to 1970
_MEMBERS_MAX = 1_000_000
_NO_TIME = -(1 << 63)


@dataclass(frozen=True)
class About:
    """CRC-32 of a member's contents, and its time in nanoseconds since the epoch, if it has an exact one."""

    checksum: int | None = None
    mtime_ns: int | None = None


class ZipIndex:
    """Checksums and times of a zip's members, in the order of their data in the file, which is libarchive's order.

    Empty if the file is not a zip, or its directory is not understood.
    """

    def __init__(self) -> None:
        self._order: list[int] = []
        self._checksums = array("L")
        self._times = array("q")

    @classmethod
    def of(cls, file: BinaryIO) -> ZipIndex:
        """Read the index of an open archive, correct its marks and its end, and seek to its beginning.

        Raises:
            ArchiveError: the zip is cut short.
        """
        index = cls()
        try:
            index._read(file)
        except (struct.error, ValueError):  # not a zip, or one that only libarchive may understand
            index = cls()
        file.seek(0)
        return index

    def about(self, number: int) -> About:
        """Return the facts about member `number`."""
        if number >= len(self._order):
            return About()
        at = self._order[number]
        return About(self._checksums[at], None if self._times[at] == _NO_TIME else self._times[at])

    def _read(self, file: BinaryIO) -> None:
        start, size, shift = _directory(file)
        file.seek(start)
        end, offsets = start + size, array("Q")
        while (at := file.tell()) + _RECORD.size <= end and len(offsets) < _MEMBERS_MAX:
            fields = _RECORD.unpack(file.read(_RECORD.size))
            if fields[0] != b"PK\1\2":
                break
            name_length, extra_length, comment_length = fields[10:13]
            name = file.read(name_length)
            extras = _extras(file.read(extra_length))
            offsets.append(_offset(fields, extras))
            self._checksums.append(fields[7])
            self._times.append(_time(extras.get(_NTFS, b"")))
            if b"\\" in name:
                _mark(file, at, offsets[-1] + shift, by_dos=fields[1] >> 8 in (_DOS, _WINDOWS))
            file.seek(at + _RECORD.size + name_length + extra_length + comment_length)
        file.flush()
        first: dict[int, int] = {}
        for number, offset in enumerate(offsets):
            first.setdefault(offset, number)
        self._order = [first[offset] for offset in sorted(first)]


def _mark(file: BinaryIO, record: int, local: int, *, by_dos: bool) -> None:
    """Mark in both of a member's headers, the central one at `record`, whether DOS or Unix made it."""
    if local < 0 or _at(file, local, len(_LOCAL)) != _LOCAL:
        return
    for position in (record + 5, local + 5):
        file.seek(position)
        file.write(bytes((_DOS if by_dos else _UNIX,)))


def _end_of(file: BinaryIO) -> int:
    """Find the end record, and cut off what follows it, because libarchive searches only the last 16 KiB for it.

    Raises:
        ArchiveError: a zip without an end record.
        ValueError: not a zip.
    """
    length = file.seek(0, os.SEEK_END)
    is_zip = _at(file, 0, len(_LOCAL)) in (_LOCAL, _SPANNED)
    after = b""
    for start in range((length - 1) // _SEARCHED * _SEARCHED, max(-1, length - _TRAILER_MAX), -_SEARCHED):
        data = _at(file, start, _SEARCHED) + after
        at = len(data)
        while (at := data.rfind(_MARK, 0, at)) >= 0:
            found, end = start + at, start + at + _END.size
            if end > length:
                continue
            if _END.unpack(_at(file, found, _END.size))[5] <= found or _has_locator(file, found):
                comment = int.from_bytes(_at(file, end - 2, 2), "little")
                file.truncate(min(length, end + comment))
                return found
        after = data[: len(_MARK) - 1]
    # Some archives have a damaged record but are intact otherwise; libarchive reads them by their local headers.
    tail = _at(file, max(0, length - _SEARCHED), _SEARCHED)
    if is_zip and not 0 <= tail.rfind(_MARK[1:]) <= len(tail) - _END.size + 1:
        raise ArchiveError("the zip is cut short: its end record is missing")
    raise ValueError("no zip")


def _has_locator(file: BinaryIO, end: int) -> bool:
    return end >= _LOCATOR.size and _at(file, end - _LOCATOR.size, 4) == b"PK\6\7"


def _at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Find the central directory: its offset, its length in bytes, and how far the archive's own offsets are off.

    Raises:
        ArchiveError, ValueError, struct.error: there is no central directory.
    """
    end = _end_of(file)
    size, said = _END.unpack(_at(file, end, _END.size))[5:7]
    if _has_locator(file, end):
        # Bytes before the archive make the record's offset wrong, but the directory always ends just before it.
        record = end - _LOCATOR.size - _END64.size
        fields = _END64.unpack(_at(file, max(0, record), _END64.size))
        if fields[0] == b"PK\6\6":
            size, said, end = fields[8], fields[9], record
    if size > end:
        raise ValueError("the directory is longer than the file")
    return end - size, size, end - size - said


def _extras(extra: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        found.setdefault(tag, extra[4 : 4 + size])
        extra = extra[4 + size :]
    return found


def _offset(fields: tuple[int, ...], extras: dict[int, bytes]) -> int:
    """Return the offset of a member's local header; the zip64 field has only values that are too large elsewhere."""
    wide = extras.get(_ZIP64, b"")
    if fields[16] != _MAX32:
        return fields[16]
    skipped = 8 * ((fields[8] == _MAX32) + (fields[9] == _MAX32))
    return int.from_bytes(wide[skipped : skipped + 8], "little")


def _time(ntfs: bytes) -> int:
    if len(ntfs) < 16 or ntfs[4:8] != b"\1\0\x18\0":
        return _NO_TIME
    ns = (int.from_bytes(ntfs[8:16], "little") - _FILETIME_EPOCH * 10_000_000) * 100
    return ns if -(1 << 63) < ns < 1 << 63 else _NO_TIME
