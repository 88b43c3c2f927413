"""Local directories as tar: looked through, then packed while they are sent."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from prouter.client.core.flow import Body
from prouter.client.core.progress import Counter, Progress

__all__ = ["CHUNK", "Member", "file_body", "scan", "sha256", "tar_body"]

CHUNK = 256 * 1024
"""Bytes read from a file at once."""
_BLOCK = 512
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A local file, directory or link, to be packed.

    Attributes:
        name: below the directory, with slashes.
        source: where it is.
        target: of a link; None for others.
        size: bytes of a file, 0 for others.
    """

    name: str
    source: str
    mode: int
    size: int
    mtime_ns: int
    target: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it has contents."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


def scan(root: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[list[Member], list[str]]:
    """Look through a directory; return what to pack, parents first, and the names of what is left out.

    Links that stay in the directory are packed as links. Others are replaced by what they lead to. Sockets, devices,
    fifos, and links that lead to nothing are left out.

    Args:
        include: masks (fnmatch) of whole relative paths, as the router's archives understand them; empty for all.
        exclude: masks of what to leave out, with everything below it; they win.

    Raises:
        OSError: something cannot be read.
    """
    members: list[Member] = []
    skipped: list[str] = []
    top = os.stat(root)
    _walk(root, "", {(top.st_dev, top.st_ino)}, list(exclude), members, skipped)
    return _included(members, include), skipped


def _walk(
    place: str, prefix: str, above: set[tuple[int, int]], exclude: list[str], members: list[Member], skipped: list[str]
) -> None:
    for name in sorted(os.listdir(place)):
        path, below = os.path.join(place, name), prefix + name
        if any(fnmatch.fnmatchcase(below, mask) for mask in exclude):
            continue
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(path)
            if stays_inside(below, target):
                members.append(Member(below, path, found.st_mode, 0, found.st_mtime_ns, target))
                continue
            try:
                found = os.stat(path)
            except OSError:
                skipped.append(below)
                continue
        identity = (found.st_dev, found.st_ino)
        if stat.S_ISREG(found.st_mode):
            members.append(Member(below, path, found.st_mode, found.st_size, found.st_mtime_ns))
        elif stat.S_ISDIR(found.st_mode) and identity not in above:
            members.append(Member(below, path, found.st_mode, 0, found.st_mtime_ns))
            _walk(path, f"{below}/", above | {identity}, exclude, members, skipped)
        else:
            skipped.append(below)


def stays_inside(name: str, target: str) -> bool:
    """Whether a link of this name leads to a place below the root, whatever other links there are.

    Only leading ``..`` count: after another name, which may be a link itself, nobody knows where ``..`` leads.
    """
    if os.path.isabs(target) or target.startswith("/") or not target or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return climbs <= name.count("/") and ".." not in parts[climbs:]


def _included(members: list[Member], include: Sequence[str]) -> list[Member]:
    """Return the members that match, and the directories above them."""
    if not include:
        return members
    wanted = {one.name for one in members if any(fnmatch.fnmatchcase(one.name, mask) for mask in include)}
    above = {name[:at] for name in wanted for at, letter in enumerate(name) if letter == "/"}
    return [one for one in members if one.name in wanted or one.name in above]


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.mode = stat.S_IMODE(member.mode) & 0o777
    info.mtime = member.mtime_ns // 1_000_000_000
    if member.mtime_ns % 1_000_000_000 or not 0 <= info.mtime < 8**11:
        info.pax_headers = {"mtime": _decimal(member.mtime_ns)}
    if member.target is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.target, 0o777
    elif member.is_directory:
        info.type = tarfile.DIRTYPE
    else:
        info.size = member.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _decimal(nanoseconds: int) -> str:
    whole, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{'-' if nanoseconds < 0 else ''}{whole}.{fraction:09d}"


def _packed(members: Iterable[Member]) -> Iterator[bytes]:
    for member in members:
        yield _header(member)
        if member.is_file:
            yield from _contents(member.source, member.size)
            if padding := -member.size % _BLOCK:
                yield bytes(padding)
    yield _END


def _contents(source: str, size: int) -> Iterator[bytes]:
    """Return the first `size` bytes of a file.

    Raises:
        OSError: it cannot be read, or has become shorter.
    """
    left = size
    with open(source, "rb") as file:
        while left:
            data = file.read(min(CHUNK, left))
            if not data:
                raise OSError(f"'{source}' became shorter while it was sent: leave it out, or try again")
            left -= len(data)
            yield data


def tar_body(members: Sequence[Member], progress: Progress | None) -> Body:
    """Return members as the body of a request, a tar of known size."""
    size = len(_END) + sum(len(_header(one)) + one.size + -one.size % _BLOCK for one in members)
    return _body(partial(_joined, members), size, progress)


def _body(chunks: Callable[[], Iterator[bytes]], size: int, progress: Progress | None) -> Body:
    count = Counter(progress, size)

    def anew() -> Iterator[bytes]:
        count.restart(0, size)
        return chunks()

    return Body(anew, size, count)


def _joined(members: Sequence[Member]) -> Iterator[bytes]:
    """Return the tar in pieces of at least `CHUNK` bytes: thousands of small files cost few system calls."""
    pieces = bytearray()
    for piece in _packed(members):
        pieces += piece
        if len(pieces) >= CHUNK:
            yield bytes(pieces)
            pieces.clear()
    yield bytes(pieces)


def file_body(source: str, size: int, progress: Progress | None) -> Body:
    """Return one file as the body of a request."""
    return _body(partial(_contents, source, size), size, progress)


def sha256(source: str) -> str:
    """Return the hash of a file's contents."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
