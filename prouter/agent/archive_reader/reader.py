"""The archive reader's work: give up rights that could do harm, then read one archive and report its contents."""

from __future__ import annotations

import contextlib
import ctypes
import locale
import os
import resource
import stat
import time
import zlib
from collections.abc import Iterable
from itertools import chain

from prouter.agent.archive_reader.libarchive import ArchiveError, Library, Member
from prouter.agent.archive_reader.messages import (
    DATA,
    DIRECTORY,
    DONE,
    END,
    ENTRY,
    FAILED,
    FILE,
    HARDLINK,
    HEADER,
    LENGTH,
    LINKED_FILE,
    NO_LIBRARY,
    NO_MEMORY,
    OFFSET,
    OTHER,
    SYMLINK,
    UNREADABLE,
    Entry,
)
from prouter.agent.archive_reader.zip_index import About, ZipIndex

__all__ = ["main"]

_MEMORY_MAX = 320 << 20  # bytes of address space; some 60 MiB of it are Python and libraries
_CPU_SECONDS = 60  # seconds of CPU time without a message
_GATHERED = 1 << 17  # bytes of messages written at once
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_NOBODY = 65534
_WRONG_SIZE = "uncompressed data is wrong size"
_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}


class _Output:
    """Messages on their way to the agent. The kernel ends the process if it computes for long without sending one."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._allowed = 0.0
        self._allow_time()

    def tell(self, kind: bytes, *payload: bytes) -> None:
        """Queue one message; it is written soon."""
        length = sum(map(len, payload))
        self._parts += (HEADER.pack(kind, length), *payload)
        self._size += HEADER.size + length
        if self._size >= _GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write the queued messages."""
        left = memoryview(b"".join(self._parts))
        self._parts, self._size = [], 0
        while left:
            left = left[os.write(1, left) :]
        self._allow_time()

    def _allow_time(self) -> None:
        used = time.process_time()
        if used + _CPU_SECONDS / 2 > self._allowed:
            self._allowed = used + _CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (int(self._allowed), resource.RLIM_INFINITY))


def main(how: str) -> int:
    """Read the archive on descriptor 0 and return the exit status."""
    out = _Output()
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # names come out as UTF-8 where an archive declares their encoding
        library = Library()
    except (OSError, locale.Error) as error:
        out.tell(FAILED, NO_LIBRARY, str(error).encode("utf-8", "replace"))
        out.flush()
        return 1
    if how == "check":
        return 0
    try:
        index = _index() if how == "file" else ZipIndex()
        _confine()
        _read(library, index, out)
        out.tell(DONE)
    except MemoryError:
        out.tell(FAILED, NO_MEMORY)
    except ArchiveError as error:
        text = str(error)
        reason = NO_MEMORY if "llocat" in text or "emory" in text else UNREADABLE
        out.tell(FAILED, reason, text.encode("utf-8", "replace"))
    out.flush()
    return 0


def _index() -> ZipIndex:
    """Return the index of the zip on descriptor 0, empty if it is not a zip; cut off what follows its end."""
    with open(0, "r+b", closefd=False) as file:
        index = ZipIndex.of(file)
    os.lseek(0, 0, os.SEEK_SET)
    return index


def _confine() -> None:
    """Give up root, new descriptors, file growth, processes and unbounded memory; make the kernel kill us first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # In some containers there is no user but root, who is not the machine's.
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, _MEMORY_MAX),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _read(library: Library, index: ZipIndex, out: _Output) -> None:
    number = -1
    for member in library.members(0):
        number += 1
        if not member.name:
            continue  # skipped, as in bsdtar: the sandbox cannot store it
        try:
            _tell_member(member, out, index.about(number) if member.in_zip else About())
        except ArchiveError as error:
            raise ArchiveError(f"member '{member.name.decode('utf-8', 'backslashreplace')[:200]}': {error}") from error


def _tell_member(member: Member, out: _Output, about: About) -> None:
    mtime_ns = member.mtime_ns if about.mtime_ns is None else about.mtime_ns
    target = member.hardlink
    if target:
        blocks = member.blocks() if member.size else iter(())
        first = next(blocks, None)
        if first is None:
            out.tell(ENTRY, Entry(HARDLINK, member.name, 0, target=target).encode())
            return
        out.tell(ENTRY, Entry(LINKED_FILE, member.name, member.mode, mtime_ns, target).encode())
        _tell_contents(member, chain((first,), blocks), out, about.checksum)
        return
    kind = _KINDS.get(member.type, OTHER)
    out.tell(ENTRY, Entry(kind, member.name, member.mode, mtime_ns, member.symlink).encode())
    if kind == FILE:
        _tell_contents(member, member.blocks(), out, about.checksum)


def _tell_contents(
    member: Member, blocks: Iterable[tuple[int, bytes, str]], out: _Output, checksum: int | None
) -> None:
    end = crc = 0
    declared = member.size
    for offset, data, doubt in blocks:
        if data:
            out.tell(DATA, OFFSET.pack(offset), data)
            end = offset + len(data)
            if checksum is not None:
                crc = zlib.crc32(data, crc)
        if doubt:
            # Some zips declare a wrong size but are intact otherwise; unzip accepts them, too.
            if checksum != crc or _WRONG_SIZE not in doubt:
                raise ArchiveError(doubt)
            declared = None
    out.tell(END, LENGTH.pack(-1 if declared is None else max(end, declared)))
