"""Creation of archive members in a sandbox, whatever their format: files, directories, and links inside it.

A member whose name or link leads outside, or that is a device or fifo, is refused by name; earlier members stay.
Owners are ignored, and of modes only the permission bits count. Existing files are replaced, existing directories kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from prouter.agent.archives.placing import leaves, place, refuse_directory, set_attributes
from prouter.agent.sandbox import syscalls
from prouter.agent.sandbox.paths import hidden_name, refusal, shown, split, translated
from prouter.agent.sandbox.quota import DIRECTORY, Claim, freed_by_replacing
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.trees import PATH_MAX
from prouter.errors import Forbidden, InvalidRequest, NoSpace, PRouterError, TooLarge

__all__ = ["ArchiveLimits", "Extraction", "Unpacked", "refused"]

_OPEN_DIRECTORIES = 32
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
_PEEK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET_MAX = 4096  # bytes of a link's target; PATH_MAX


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits at which unpacking stops with `TooLarge`; None for no limit.

    Attributes:
        sandbox_size: bytes on disk that the sandbox may hold, including its present contents.
        members: files, directories and links together.
        ratio: bytes unpacked per byte uploaded, checked once `ratio_from` bytes are unpacked.
    """

    sandbox_size: int | None = None
    members: int | None = 1_000_000
    ratio: float | None = 200.0
    ratio_from: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Counts of an archive's members; `bytes` counts the contents of its files."""

    files: int
    directories: int
    links: int
    bytes: int


@dataclass(slots=True)
class _OpenFile:
    """The file being written. `hidden` is its name until it replaces `name`; None if it had `name` from the start.

    Attributes:
        written: bytes so far.
    """

    fd: int
    parent: int
    name: bytes
    hidden: bytes | None
    member: bytes
    mode: int
    mtime_ns: int | None
    written: int = 0


def refused(member: bytes, what: str) -> InvalidRequest:
    """Return the error for a member that is refused; `what` says why."""
    return InvalidRequest(f"Invalid request: archive member '{shown(member)}' is refused: {what}")


@final
class Extraction:
    """Creates one archive's members below `base`, one after another; a file's bytes come between `file` and `end_file`.

    Args:
        sandbox: the sandbox to unpack into.
        base: the directory in it to which the archive's names are relative; created if missing.
        limits: size, members and ratio.

    Attributes:
        files, directories, links, bytes: counts so far.
        received: bytes of the archive received so far, updated by the owner, for the ratio.

    Raises:
        Conflict: something other than a directory is in the way of `base`.
    """

    def __init__(self, sandbox: Sandbox, base: tuple[bytes, ...], limits: ArchiveLimits) -> None:
        self._sandbox = sandbox
        self._base = base
        self._limits = limits
        self._claim = None if limits.sandbox_size is None else Claim(sandbox.quota, limits.sandbox_size)
        self._open: OrderedDict[tuple[bytes, ...], int] = OrderedDict()
        self._modes: list[tuple[bytes, int]] = []
        self._times: list[tuple[bytes, int]] = []
        self._file: _OpenFile | None = None
        self.files = self.directories = self.links = self.bytes = self._implied = 0
        self.received = 0
        with translated(b"/".join(base), writing=True):
            os.close(sandbox.make_directory(base))
        with sandbox.opened() as root:
            info = os.fstat(root)
            self._root = (info.st_dev, info.st_ino)

    def close(self) -> None:
        """Delete the unfinished file and close all descriptors; complete members stay. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # deleted already, with its directory
                os.unlink(file.hidden or file.name, dir_fd=file.parent)
            os.close(file.fd)
            if self._claim is not None:
                self._claim.release()
        while self._open:
            os.close(self._open.popitem()[1])

    def finish(self, *, sync: bool = False) -> Unpacked:
        """Set the modes and times of directories, as nothing changes them any more; with `sync` sync to disk."""
        for member, mtime_ns in self._times:
            self._set_attributes(member, None, mtime_ns)
        for member, mode in reversed(self._modes):
            self._set_attributes(member, mode, None)
        if sync:
            self._sync()
        self.close()
        return Unpacked(self.files, self.directories, self.links, self.bytes)

    def _sync(self) -> None:
        path = b"/".join(self._base)
        with translated(path, writing=True):
            fd = self._sandbox.open(self._base, os.O_RDONLY | os.O_DIRECTORY)
            try:
                syscalls.syncfs(fd)
            finally:
                os.close(fd)

    def file(self, member: bytes, mode: int, mtime_ns: int | None, size: int | None = None) -> None:
        """Begin a file. With `size` in bytes, a file that is too large is refused before anything is written."""
        parts = self._parts(member)
        if not parts or member.endswith(b"/"):
            raise refused(member, "a file without a name")
        self._count(member)
        with translated(member, writing=True):
            parent, hidden = self._directory(parts[:-1]), None
            self._cover(member, size or 0)
            try:
                fd = os.open(parts[-1], _CREATE, 0o600, dir_fd=parent)
            except FileExistsError:
                refuse_directory(parts[-1], parent)
                hidden = hidden_name()
                fd = os.open(hidden, _CREATE, 0o600, dir_fd=parent)
        self._file = _OpenFile(fd, parent, parts[-1], hidden, member, mode & 0o777, mtime_ns)

    def write(self, data: bytes | memoryview) -> None:
        """Append to the current file.

        Raises:
            TooLarge: the sandbox is at its size limit, or the archive exceeds its ratio.
            NoSpace: the disk is full.
        """
        file = self._file
        assert file is not None
        file.written += len(data)
        self._cover(file.member, file.written)
        try:
            done = os.write(file.fd, data)
            while done < len(data):
                done += os.write(file.fd, memoryview(data)[done:])
        except OSError as error:
            raise refusal(error, file.member, writing=True) from error
        self.bytes += len(data)
        self.check_ratio(self.bytes)

    def skip_to(self, offset: int) -> None:
        """Leave a hole: the next bytes belong at `offset` of the current file."""
        assert self._file is not None
        with translated(self._file.member, writing=True):
            os.lseek(self._file.fd, offset, os.SEEK_SET)

    def set_length(self, size: int) -> None:
        """Set the length of the current file to `size` bytes, with a hole if it is shorter."""
        assert self._file is not None
        with translated(self._file.member, writing=True):
            os.ftruncate(self._file.fd, size)

    def check_ratio(self, unpacked: int) -> None:
        """Raise `TooLarge` for an archive that unpacks to far more than its own size."""
        limits = self._limits
        if limits.ratio is not None and unpacked > limits.ratio_from and unpacked > limits.ratio * self.received:
            raise TooLarge(
                f"the archive unpacks to more than {limits.ratio:g} times its size (ratio limit); unpacking stopped"
                f" after {unpacked} bytes"
            )

    def end_file(self) -> None:
        """Finish the current file: set its mode and time, and give it its name."""
        file = self._file
        assert file is not None
        with translated(file.member, writing=True):
            os.fchmod(file.fd, file.mode)
            if file.mtime_ns is not None:
                os.utime(file.fd, ns=(file.mtime_ns, file.mtime_ns))
            freed = 0
            if file.hidden is not None:
                if self._claim is not None:
                    freed = freed_by_replacing(file.name, file.parent)
                os.replace(file.hidden, file.name, src_dir_fd=file.parent, dst_dir_fd=file.parent)
        if self._claim is not None:
            self._claim.settle(freed)
        self._file = None
        os.close(file.fd)
        self.files += 1

    def directory(self, member: bytes, mode: int | None, mtime_ns: int | None) -> None:
        """Create a directory, or keep an existing one. `finish` sets mode and time; None leaves them alone."""
        parts = self._parts(member)
        if not parts:
            return  # the archive's root entry: the sandbox keeps its mode
        self._count(member)
        with translated(member, writing=True):
            self._directory(parts)
        if mode is not None:
            self._modes.append((member, mode))
        if mtime_ns is not None:
            self._times.append((member, mtime_ns))
        self.directories += 1

    def symlink(self, member: bytes, target: bytes, mtime_ns: int | None) -> None:
        """Create a symbolic link whose target stays inside the sandbox; the target need not exist.

        Raises:
            Forbidden: it leaves the sandbox, or could.
        """
        parts = self._named_parts(member)
        if not target or b"\0" in target or len(target) >= _TARGET_MAX:
            raise refused(member, "a link with an impossible target")
        self._count(member)
        with translated(member, writing=True):
            parent = self._directory(parts[:-1])
            if leaves(self._root, parent, target):
                raise Forbidden(
                    f"archive member '{shown(member)}' is a link that leaves the sandbox: '{shown(target)}'"
                )
            place(lambda name: os.symlink(target, name, dir_fd=parent), parts[-1], parent)
            if mtime_ns is not None:
                os.utime(parts[-1], ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
        self.links += 1

    def hardlink(self, member: bytes, target: bytes) -> None:
        """Give an existing file of the sandbox another name; `target` is relative to the archive's root.

        Raises:
            Forbidden: `target` leads outside, or is not a regular file.
            InvalidRequest: it does not exist.
        """
        parts = self._named_parts(member)
        try:
            source = (*self._base, *split(target))
        except PRouterError as error:
            raise type(error)(f"archive member '{shown(member)}' is a hard link: {error.detail}") from error
        self._count(member)
        with translated(member, writing=True):
            parent = self._directory(parts[:-1])
            try:
                found = self._sandbox.open(source, _PEEK)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise refused(member, f"a link to '{shown(target)}', which does not exist") from error
            try:
                info = os.fstat(found)
                if stat.S_ISLNK(info.st_mode):  # a relative target means something else in another directory
                    self.symlink(member, os.readlink(b"", dir_fd=found), info.st_mtime_ns)
                    return
                if not stat.S_ISREG(info.st_mode):
                    raise Forbidden(f"archive member '{shown(member)}' is a hard link to something that is not a file")
                path = f"/proc/self/fd/{found}"
                place(lambda name: os.link(path, name, dst_dir_fd=parent, follow_symlinks=True), parts[-1], parent)
            finally:
                os.close(found)
        self.links += 1

    def _set_attributes(self, member: bytes, mode: int | None, mtime_ns: int | None) -> None:
        """Set mode and time of a file or directory; links, and members that no longer exist, are left alone."""
        parts = self._parts(member)
        with translated(member, writing=True), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self._sandbox.open((*self._base, *parts), _PEEK)
            try:
                if parts and stat.S_IFMT(os.fstat(found).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                    set_attributes(found, mode, mtime_ns)
            finally:
                os.close(found)

    def _parts(self, member: bytes) -> tuple[bytes, ...]:
        if len(member) > PATH_MAX:
            raise refused(member, f"its name is too long, over {PATH_MAX} bytes")
        try:
            return split(member, root_allowed=True)
        except PRouterError as error:
            raise type(error)(f"archive member refused: {error.detail}") from error

    def _named_parts(self, member: bytes) -> tuple[bytes, ...]:
        parts = self._parts(member)
        if not parts:
            raise refused(member, "a link without a name")
        return parts

    def _directory(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of the directory, created if missing; valid for the next `_OPEN_DIRECTORIES` calls."""
        self._sandbox.refuse_removed()
        fd = self._open.get(parts)
        if fd is not None:
            self._open.move_to_end(parts)
            return fd
        if self._claim is not None:
            self._cover(b"/".join(parts), DIRECTORY * self._missing(parts))
            self._claim.settle()
        fd = self._sandbox.make_directory((*self._base, *parts), self._made)
        self._open[parts] = fd
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _count(self, member: bytes) -> None:
        limit = self._limits.members
        if limit is not None and self.files + self.directories + self.links >= limit:
            raise TooLarge(f"the archive has more than {limit} members; unpacking stopped at '{shown(member)}'")

    def _made(self) -> None:
        """Count a directory created above a member; the archive need not list it."""
        self._implied += 1
        limit = self._limits.members
        if limit is not None and self._implied > limit:
            raise TooLarge(f"the archive makes more than {limit} directories; unpacking stopped")

    def _cover(self, member: bytes, size: int) -> None:
        """Claim quota for `size` bytes of the current member."""
        if self._claim is not None:
            try:
                self._claim.cover(size)
            except NoSpace as error:
                raise TooLarge(f"unpacking stopped at '{shown(member)}': {error.detail}") from error

    def _missing(self, parts: tuple[bytes, ...]) -> int:
        """Return how many of the directories down to this one do not exist yet."""
        there, most = 0, len(parts)
        while there < most:  # binary search: a name may have thousands of directories
            middle = (there + most + 1) // 2
            try:
                os.close(self._sandbox.open((*self._base, *parts[:middle]), os.O_PATH))
                there = middle
            except FileNotFoundError:
                most = middle - 1
        return len(parts) - there
