"""Whole directory trees of a sandbox: walking, adding up sizes, removing.

A job may have built anything: trees deeper than PATH_MAX, directories without permissions, files that appear and vanish
meanwhile. So nothing here recurses without a bound, holds a descriptor per level without a bound, or relies on a name
twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prouter.agent.sandbox import syscalls
from prouter.agent.sandbox.log_files import LogFiles
from prouter.agent.sandbox.paths import shown
from prouter.keeper.log_gaps import COPIED, COPY_END, LOG_FILES

__all__ = ["PATH_MAX", "Found", "NotRemoved", "TreeRoot", "disk_usage", "remove", "walk"]

_LISTING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PATH_MAX = (1 << 16) - 2
"""Longest path in an archive in bytes; a zip has 16 bits for it, and a directory's path ends in a slash."""
_OPEN_LEVELS = 64  # directories that a walk keeps open
_HOIST_DEPTH = 32  # below this depth a removal flattens the tree instead of descending
_RECURSION_MAX = 200
_REMOVE_SECONDS, _STALE_PAUSE = 10.0, 0.25
_Unreadable = Callable[[bytes, OSError], None]
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class TreeRoot(Protocol):
    """The part of a sandbox that a walk needs."""

    logs: LogFiles

    def open(self, parts: Sequence[bytes], flags: int) -> int:
        """Open a path in the sandbox; the caller closes the descriptor."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry of a tree. `parent` is a descriptor of its directory, open until the walk continues.

    Attributes:
        path: relative to the walk's start, ``/`` between names; empty below the first level in a walk without paths.
        info: status of the entry itself (lstat).
    """

    path: bytes
    name: bytes
    parent: int
    info: os.stat_result


@dataclass(slots=True)
class _Level:
    """A directory being walked: the remaining names, the next one last.

    Attributes:
        start: where its own name begins in the path of the walk. All levels share that path, because a path for each
            would take memory with the square of the depth.
    """

    start: int
    names: list[bytes]
    fd: int | None
    identity: tuple[int, int] = (0, 0)


def _names(directory: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(directory)), reverse=True)


def walk(
    sandbox: TreeRoot,
    start: Sequence[bytes] = (),
    *,
    enter: Callable[[bytes], bool] | None = None,
    unreadable: _Unreadable | None = None,
    logs: bool = False,
    paths: bool = True,
) -> Iterator[Found]:
    """Yield everything below `start`, sorted by name, directories before their contents, without following links.

    Entries that vanish or change their type meanwhile are left out. Memory grows with the depth and with the
    directories' sizes, not with their product.

    Args:
        enter: called with the path of each directory; False leaves its contents out.
        unreadable: called with each entry that cannot be examined, and the error; it is left out. ENAMETOOLONG: its
            path is longer than `PATH_MAX`.
        logs: whether the job's logs replace files of their names in the sandbox.
        paths: False for a walk without paths; these may then have any length, and cost nothing.

    Raises:
        OSError: `start` itself cannot be opened.
    """
    yield from _Walk(sandbox, start, enter, unreadable, paths).run(logs)


@dataclass(slots=True)
class _Walk:
    """One walk.

    Attributes:
        path: path of the current directory, with a trailing slash.
        levels: the directories from the start to the current one.
    """

    sandbox: TreeRoot
    start: Sequence[bytes]
    enter: Callable[[bytes], bool] | None
    unreadable: _Unreadable | None
    paths: bool
    path: bytearray = field(default_factory=bytearray)
    levels: list[_Level] = field(default_factory=list)

    def run(self, logs: bool) -> Iterator[Found]:
        first, levels = self.sandbox.open(self.start, os.O_RDONLY | os.O_DIRECTORY), self.levels
        levels.append(_Level(0, [], first))
        try:
            listed = set(filter(self.sandbox.logs.listed, LOG_FILES)) if logs and not self.start else set()
            levels[0].names = sorted(listed.union(_names(first)), reverse=True)
            while levels:
                level = levels[-1]
                if not level.names or not self._ensure_open(level):
                    self._leave()
                    continue
                name = level.names.pop()
                if name in listed and len(levels) == 1:
                    yield from _log(self.sandbox, name)
                    continue
                found = self._look(level, name)
                if found is None:
                    continue
                yield found
                if stat.S_ISDIR(found.info.st_mode) and (self.enter is None or self.enter(found.path)):
                    self._descend(found)
        finally:
            for level in levels:
                _close(level)

    def _refuse(self, path: bytes, error: OSError) -> None:
        if error.errno not in _GONE and self.unreadable is not None:
            self.unreadable(path, error)

    def _look(self, level: _Level, name: bytes) -> Found | None:
        assert level.fd is not None
        path = name if len(self.levels) == 1 else b""
        if self.paths:
            if len(self.path) + len(name) > PATH_MAX:
                self._refuse(bytes(self.path[:PATH_MAX]), OSError(errno.ENAMETOOLONG, "a path is too long"))
                return None
            path = bytes(self.path) + name
        try:
            info = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        except OSError as error:
            self._refuse(path, error)
            return None
        return Found(path, name, level.fd, info)

    def _descend(self, found: Found) -> None:
        try:
            fd = os.open(found.name, _LISTING, dir_fd=found.parent)
        except OSError as error:
            self._refuse(found.path, error)
            return
        levels = self.levels
        levels.append(_Level(len(self.path), [], fd))
        self.path += found.name + b"/"
        levels[-1].names = _names(fd)
        if len(levels) > _OPEN_LEVELS:
            far = levels[-_OPEN_LEVELS - 1]
            if far.fd is not None:
                far.identity = _identity(far.fd)
                _close(far)

    def _leave(self) -> None:
        """Leave the deepest level; if the one above was closed, reopen it by ``..`` if that is the same directory."""
        levels = self.levels
        done = levels.pop()
        del self.path[done.start :]
        if levels and levels[-1].fd is None and done.fd is not None:
            with contextlib.suppress(OSError):  # else it is opened by its path when needed
                above = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=done.fd)
                if _identity(above) == levels[-1].identity:
                    levels[-1].fd = above
                else:
                    os.close(above)
        _close(done)

    def _ensure_open(self, level: _Level) -> bool:
        """Reopen a level that was closed while the walk was far below it; False if it no longer exists."""
        if level.fd is None:
            parts = (*self.start, *bytes(self.path).split(b"/")[:-1])
            try:
                level.fd = self.sandbox.open(parts, _LISTING)
            except OSError as error:
                if error.errno not in (*_GONE, errno.EXDEV):
                    raise
                return False
        return True


def _log(sandbox: TreeRoot, name: bytes) -> Iterator[Found]:
    with contextlib.suppress(FileNotFoundError), sandbox.logs.directory() as parent:
        own = os.fsencode(sandbox.logs.path(LOG_FILES[name]).name)
        yield Found(name, own, parent, sandbox.logs.status(LOG_FILES[name]))


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _close(level: _Level) -> None:
    if level.fd is not None:
        os.close(level.fd)
        level.fd = None


def disk_usage(sandbox: TreeRoot) -> int:
    """Return the allocated bytes of all files and directories below the sandbox; hard links count once.

    The agent's copies of the beginnings of logs do not count.
    """
    total = 0
    linked: set[tuple[int, int]] = set()
    for found in walk(sandbox, paths=False):
        info = found.info
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            identity = (info.st_dev, info.st_ino)
            if identity in linked:
                continue
            linked.add(identity)
        if found.path in LOG_FILES and info.st_size <= COPIED + len(COPY_END):
            continue
        total += info.st_blocks * 512
    return total


class NotRemoved(Exception):
    """A tree could not be removed completely; the text names the first entry that stayed, and the reason.

    Attributes:
        permitted: False if the system does not permit it: a read-only file system, missing permissions.
    """

    def __init__(self, text: str, error: int | None = None) -> None:
        super().__init__(text)
        self.permitted = error not in (errno.EROFS, errno.EACCES, errno.EPERM)


def remove(parent: int, name: bytes) -> None:
    """Remove `name` in the directory `parent`, a tree with its contents. Links are removed, never followed.

    Directories without permissions get them back first. Mount points stay. Entries that are created meanwhile are
    removed, too, as long as the removal makes progress, for at most 10 s. A missing name is ignored.

    Raises:
        NotRemoved: something stayed.
    """
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        top = _enter(parent, name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotRemoved(f"{shown(name)}: {_reason(error)}", error.errno) from error
    try:
        _Removal(top).run(parent, name)
    finally:
        os.close(top)


def _reason(error: OSError) -> str:
    return "a mount point" if error.errno == errno.EXDEV else os.strerror(error.errno or 0)


def _enter(parent: int, name: bytes) -> int:
    """Open a directory to empty it: never a link, never a mount point (EXDEV); its owner gets all permissions."""
    info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700:
        _give_permissions(parent, name)
    if syscalls.have_openat2():
        resolve = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH
        return syscalls.openat2(parent, name, _LISTING, resolve)
    fd = os.open(name, _LISTING, dir_fd=parent)
    if os.fstat(fd).st_dev != os.fstat(parent).st_dev:
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return fd


def _give_permissions(parent: int, name: bytes) -> None:
    """Set mode 0700 on exactly this directory, through /proc, because fchmod refuses an O_PATH descriptor."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Removal:
    """Empties the directory `top`.

    It descends with one descriptor per level to a fixed depth. Deeper subdirectories are hoisted: each is renamed into
    `top` and emptied there later. So depth costs neither descriptors nor stack, and no ``..`` is opened, which a rename
    could have redirected.
    """

    top: int
    removed: int = 0
    hoisted: int = 0
    failures: list[str] = field(default_factory=list)
    first_error: int | None = None
    stale: bool = False

    def run(self, parent: int, name: bytes) -> None:
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            before = self.removed
            self.failures.clear()
            self.first_error, self.stale = None, False
            self._empty(self.top, 0)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(name, dir_fd=parent)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    self._failed(name, error)
            if ((stuck := self.removed == before) and (self.failures or not self.stale)) or time.monotonic() > deadline:
                raise NotRemoved(self._report(name), self.first_error)
            time.sleep(_STALE_PAUSE if stuck else 0.0)

    def _report(self, name: bytes) -> str:
        if not self.failures:
            return f"{shown(name)}: files are still being created in it"
        more = len(self.failures) - 1
        return self.failures[0] + (f" (and {more} more)" if more else "")

    def _failed(self, name: bytes, error: OSError) -> None:
        self.stale = self.stale or error.errno == errno.ENOENT  # As caches of network file systems have it.
        if error.errno != errno.ENOENT:
            self.first_error = self.first_error or error.errno
            self.failures.append(f"{shown(name)}: {_reason(error)}")

    def _empty(self, directory: int, depth: int) -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if not entry.is_dir(follow_symlinks=False):
                    self._attempt(os.unlink, directory, name)
                elif depth < _HOIST_DEPTH or not self._hoist(directory, name):
                    self._subtree(directory, name, depth)

    def _subtree(self, directory: int, name: bytes, depth: int) -> None:
        try:
            if depth >= _RECURSION_MAX:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            below = _enter(directory, name)
        except OSError as error:
            self._failed(name, error)
            return
        try:
            self._empty(below, depth + 1)
        finally:
            os.close(below)
        self._attempt(os.rmdir, directory, name)

    def _attempt(self, action: Callable[..., None], directory: int, name: bytes) -> None:
        try:
            action(name, dir_fd=directory)
            self.removed += 1
        except OSError as error:
            self._failed(name, error)

    def _hoist(self, directory: int, name: bytes) -> bool:
        """Move a subdirectory up to `top`; False if the system does not permit it (no space, a mount point)."""
        with contextlib.suppress(OSError):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode & 0o700 != 0o700:
                _give_permissions(directory, name)  # moving a directory writes to it, because its '..' changes
        self.hoisted += 1
        try:
            os.rename(name, b".removed-%x" % self.hoisted, src_dir_fd=directory, dst_dir_fd=self.top)
        except OSError:
            return False
        self.removed += 1
        return True
