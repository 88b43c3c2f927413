"""Packing of a sandbox, or a directory in it, while it is downloaded: tar, tar.gz, tar.zst or zip.

Nothing is prepared on disk. `Packer.size` computes a plain tar's size beforehand. The archive keeps that size even if
files change meanwhile: longer ones are cut, shorter ones are filled with zeros, comments replace vanished ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import final

import zstandard

from prouter.agent.archives import tar_writer
from prouter.agent.archives.members import Masks, Member, Tree
from prouter.agent.archives.zip_writer import ZipWriter
from prouter.agent.sandbox.files import FileHandle, stat
from prouter.agent.sandbox.paths import shown, split
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Conflict, InvalidRequest

__all__ = ["FORMATS", "Packer", "pack"]

FORMATS = {
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tar.zst": "application/zstd",
    "zip": "application/zip",
}
_CHUNK = 1 << 16  # least bytes of a chunk, except the last
_PIECE = 1 << 18
_PLANNED_MAX = 50_000  # members examined before the start, whose sizes are remembered to keep the promised length
_PLANNED_BYTES = 4 << 20  # of their names
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 3


@final
class Packer:
    """One archive to pack; iterate over it once for its bytes.

    Args:
        sandbox: the sandbox to pack.
        path: the directory to pack (default: all); names in the archive are relative to it.
        include: fnmatch masks on relative paths; none: everything.
        exclude: masks of what is left out, with everything below it; they win over `include`.
        archive_format: one of `FORMATS`, which gives their media types.

    Attributes:
        notes: after packing, how the archive differs from the disk (at most 100 lines).

    Raises:
        NotFound, Conflict, Forbidden, InvalidRequest: no such directory, a file, outside the sandbox, no such format.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        path: bytes = b"",
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        archive_format: str = "tar",
    ) -> None:
        if archive_format not in FORMATS:
            raise InvalidRequest(f"Invalid request: no archive format '{archive_format}', only {', '.join(FORMATS)}")
        base = split(path, root_allowed=True)
        if stat(sandbox, path, follow=True).type != "dir":
            raise Conflict(f"'{shown(path)}' is not a directory")
        self._tree = Tree(sandbox, base, Masks(include, exclude))
        self._format = archive_format
        self._plan: list[Member] | None = None
        self.notes = self._tree.notes

    def size(self) -> int | None:
        """Look through the tree and return the archive's size in bytes, which the archive then keeps.

        None if it is unknown: compressed, more than 50,000 members (the rest is not examined either), or names of some
        MiB.

        Raises:
            Forbidden, TooLarge: a file may not be read, or its path is too long; the text names it.
        """
        plan: list[Member] | None = [] if self._format == "tar" else None
        total, room = len(tar_writer.END), _PLANNED_BYTES
        for count, member in enumerate(self._tree.members()):
            if count == _PLANNED_MAX:
                plan = None
                break
            room -= len(member.path) + len(member.target)
            if plan is None or room < 0:
                plan = None
                continue
            plan.append(member)
            total += _tar_size(member)
        self._tree.refuse_incomplete()
        self._plan = plan
        return None if plan is None else total

    def __iter__(self) -> Iterator[bytes]:
        """Yield the archive in chunks of at least 64 KiB, except the last."""
        pieces = ZipWriter(self._tree).pieces() if self._format == "zip" else self._tar()
        if self._format == "tar.gz":
            pieces = _compressed(pieces, zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS))
        elif self._format == "tar.zst":
            pieces = _compressed(pieces, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj())
        return _gathered(pieces)

    def _tar(self) -> Iterator[bytes]:
        if self._plan is None:
            for member, handle in self._tree.opened():
                yield tar_writer.header(member)
                if handle is not None:
                    yield from self._contents(member, handle)
        else:
            yield from self._planned(self._plan)
        yield tar_writer.END

    def _planned(self, plan: list[Member]) -> Iterator[bytes]:
        owed = 0  # bytes promised for files that vanished
        for member in plan:
            handle = self._tree.open(member) if member.size else None
            if member.size and handle is None:
                owed += _tar_size(member)
                continue
            yield from tar_writer.filler(owed)
            owed = 0
            yield tar_writer.header(member)
            if handle is not None:
                with handle:
                    yield from self._contents(member, handle)
        yield from tar_writer.last_filler(owed)

    def _contents(self, member: Member, handle: FileHandle) -> Iterator[bytes]:
        left = member.size
        try:
            for piece in handle.chunks(0, member.size, _PIECE):
                left -= len(piece)
                yield piece
        except Conflict:
            pass  # it became shorter: the rest is filled below, and noted
        if left:
            self._tree.note(member.path, f"became shorter while it was packed: the last {left} bytes are zeros")
        elif handle.size > member.size:
            self._tree.note(member.path, f"became longer while it was packed: cut at {member.size} bytes")
        left += tar_writer.padding(member.size)
        while left:
            yield bytes(min(left, _PIECE))
            left -= min(left, _PIECE)


def pack(
    sandbox: Sandbox,
    path: bytes = b"",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    archive_format: str = "tar",
) -> Iterator[bytes]:
    """Yield an archive's bytes; arguments as for `Packer`, which also computes a tar's size."""
    return iter(Packer(sandbox, path, include=include, exclude=exclude, archive_format=archive_format))


def _tar_size(member: Member) -> int:
    return len(tar_writer.header(member)) + member.size + tar_writer.padding(member.size)


def _compressed(pieces: Iterator[bytes], compressor: zlib._Compress | zstandard.ZstdCompressionObj) -> Iterator[bytes]:
    for piece in _gathered(pieces):
        yield compressor.compress(piece)
    yield compressor.flush()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes with small pieces joined."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)
