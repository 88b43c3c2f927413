"""A tar that arrives in pieces, unpacked into a local directory and nowhere else.

The job that wrote the files is not trusted: names with ``..`` and absolute names are refused, links that lead out of
the directory and devices are left out, and nothing is written through a link, whoever made it. A file appears under its
name once all of it was written.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import suppress
from functools import lru_cache
from typing import IO

from prouter.client.core.errors import RouterError
from prouter.client.core.packing import stays_inside

__all__ = ["PartFile", "Unpacker"]

_BLOCK = 512
_MOST_HEADER = 4 << 20
"""Bytes of an extended header, at most: it has a path and a link, of 64 KiB each."""
_LATEST = 2**40
"""Seconds since the epoch of a modification time, at most."""
_PIECE = 1 << 20
_Parser = Generator[tuple[int, bool], bytes, None]
"""Yields how many bytes it wants, and whether exactly so many."""


class PartFile:
    """A file that gets its name once it is complete.

    Args:
        target: its path. A link there is replaced, never written through.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._part = ""
        self._file: IO[bytes] = io.BytesIO()

    def open(self) -> None:
        """Make it, under another name.

        Raises:
            OSError: it cannot be written.
        """
        fd, self._part = tempfile.mkstemp(prefix=".prouter-", suffix=".part", dir=os.path.dirname(self._target) or ".")
        self._file = os.fdopen(fd, "wb")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def empty(self) -> None:
        """Drop what was written."""
        self._file.seek(0)
        self._file.truncate()

    def finish(self, mode: int | None = None, mtime: float | None = None) -> None:
        """Give it its name.

        Args:
            mode: permission bits; those of a new file by default.
            mtime: seconds since the epoch; now by default.
        """
        self._file.close()
        os.chmod(self._part, _permitted(0o666 if mode is None else mode))
        if mtime is not None:
            os.utime(self._part, (mtime, mtime))
        os.replace(self._part, self._target)

    def abort(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):  # The disk is full, and what is buffered cannot be written.
            self._file.close()
        with suppress(OSError):
            os.unlink(self._part)


@lru_cache(maxsize=1)
def _mask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _permitted(mode: int) -> int:
    """Return permission bits without those that the user's umask takes away: a job does not open files to others."""
    return mode & 0o777 & ~_mask()


class Unpacker:
    """Unpacks one tar.

    Attributes:
        complete: size of each file and link that was unpacked, by name.
        skipped: names that were left out.

    Args:
        root: the directory; made if it does not exist.
    """

    def __init__(self, root: str) -> None:
        self.complete: dict[str, int] = {}
        self.skipped: list[str] = []
        self._root = root
        self._made: set[str] = set()
        self._directories: list[tuple[str, int, float]] = []
        self._part: PartFile | None = None
        self._buffer = bytearray()
        self._ended = False
        os.makedirs(root, exist_ok=True)
        self._parser = self._parse()
        self._want, self._exactly = next(self._parser)

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            RouterError: this is no tar, or a name in it is refused.
            OSError: something cannot be written.
        """
        if self._ended:
            return
        self._buffer += data
        while not self._ended and self._buffer and (not self._exactly or len(self._buffer) >= self._want):
            piece = bytes(self._buffer[: self._want])
            del self._buffer[: len(piece)]
            try:
                self._want, self._exactly = self._parser.send(piece)
            except StopIteration:
                self._ended = True

    def finish(self) -> None:
        """Finish after the last byte.

        Raises:
            RouterError: the archive is not complete.
        """
        if not self._ended:
            raise RouterError("the archive ended before its end mark", code="truncated")
        for path, mode, mtime in reversed(self._directories):
            os.chmod(path, _permitted(mode) | stat.S_IRWXU)
            os.utime(path, (mtime, mtime))

    def abort(self) -> None:
        """Leave no file half written."""
        if self._part is not None:
            self._part.abort()
            self._part = None

    def _parse(self) -> _Parser:
        extended: dict[str, str] = {}
        while True:
            block = yield _BLOCK, True
            if not any(block):
                return
            member = _member(block)
            if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                if not 0 <= member.size <= _MOST_HEADER:
                    raise _bad("a header is too long")
                body = b""
                if member.size:
                    body = (yield _padded(member.size), True)[: member.size]
                extended.update(_extension(member, body))
                continue
            size = _extend(member, extended)
            extended = {}
            if member.isreg():
                yield from self._file(member, size)
            else:
                self._other(member)

    def _file(self, member: tarfile.TarInfo, size: int) -> _Parser:
        path = self._place(member.name)
        if os.path.isdir(path) and not os.path.islink(path):
            raise IsADirectoryError(f"'{path}' is a directory, but the archive has a file of this name")
        self._part = part = PartFile(path)
        part.open()
        left = size
        while left:
            data = yield min(left, _PIECE), False
            part.write(data)
            left -= len(data)
        part.finish(member.mode, member.mtime)
        self._part = None
        self.complete[member.name] = size
        if padding := -size % _BLOCK:
            yield padding, True

    def _other(self, member: tarfile.TarInfo) -> None:
        """Make a directory or a link; leave out what is neither."""
        name = member.name.rstrip("/")
        if member.isdir():
            if name in ("", "."):
                return
            path = self._place(name)
            self._directory(path)
            self._directories.append((path, member.mode, member.mtime))
        elif member.issym() and stays_inside(name, member.linkname):
            path = self._place(name)
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.symlink(member.linkname, path)
            self._made.discard(path)
            self.complete[name] = 0
        else:
            self.skipped.append(name)

    def _place(self, name: str) -> str:
        """Return the path of a member; its directories are made.

        Raises:
            RouterError: the name leads out of the directory.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        foreign = os.sep != "/" and any(os.sep in part or ":" in part for part in parts)
        if name.startswith("/") or ".." in parts or "\0" in name or not parts or foreign:
            raise RouterError(
                f"the archive has the name {name!r}, which leads out of the directory", code="unsafe_name"
            )
        path = self._root
        for part in parts[:-1]:
            path = os.path.join(path, part)
            self._directory(path)
        return os.path.join(path, parts[-1])

    def _directory(self, path: str) -> None:
        """Make a directory unless it is there.

        Raises:
            OSError: something else has its name, a link for example.
        """
        if path in self._made:
            return
        try:
            os.mkdir(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise NotADirectoryError(f"'{path}' is a link or file where the archive has a directory") from None
        self._made.add(path)


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _bad(why: str) -> RouterError:
    return RouterError(f"the router's answer is no tar that can be unpacked: {why}", code="bad_archive")


def _member(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _bad(str(error)) from error


def _extension(header: tarfile.TarInfo, body: bytes) -> dict[str, str]:
    """Return what an extended header says of the member after it."""
    if header.type == tarfile.XGLTYPE:
        return {}  # Comments: the router sets nothing for all members.
    if header.type == tarfile.XHDTYPE:
        return _records(body)
    name = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
    return {name: body.partition(b"\0")[0].decode("utf-8", "surrogateescape")}


def _records(body: bytes) -> dict[str, str]:
    """Return the records of a pax header: ``<length> <key>=<value>\\n`` each."""
    found = {}
    while body:
        digits, _, _ = body.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        record = body[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) or length > len(body) or not equals or not value.endswith(b"\n"):
            raise _bad("a pax header is damaged")
        found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        body = body[length:]
    return found


def _extend(member: tarfile.TarInfo, extended: dict[str, str]) -> int:
    """Apply extended headers to a member; return its size in bytes."""
    member.name = extended.get("path", member.name)
    member.linkname = extended.get("linkpath", member.linkname)
    try:
        member.mtime = float(extended.get("mtime", member.mtime))
        size = int(extended.get("size", member.size))
    except ValueError:
        raise _bad("a pax header is damaged") from None
    if size < 0 or not abs(member.mtime) < _LATEST:
        raise _bad("a size or a time is out of range")
    return size
