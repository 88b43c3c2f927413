"""A job's sandbox: one directory that belongs to the job, made with it and removed with it.

Everything that requests do to files goes through `Sandbox.open` and `Sandbox.make_directory`, which never leave the
directory, whatever links the job makes and whenever it makes them (see docs/decisions/confinement.md). They take names
that `prouter.agent.sandbox.paths.split` has passed, and raise plain `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prouter.agent.sandbox import syscalls, trees
from prouter.agent.sandbox.beneath import open_beneath
from prouter.agent.sandbox.log_files import LogFiles
from prouter.agent.sandbox.paths import refusal, shown, split, translated
from prouter.agent.sandbox.quota import Room
from prouter.errors import Conflict, Forbidden, IsDirectory, NotFound, PRouterError

__all__ = ["OPEN_DIRECTORY", "Sandbox"]

OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sandbox:
    """One job's directory. Safe to use from several threads at once.

    Args:
        root: its path. Links above it are resolved once, here; the directory itself must never be a link.
        openat2: False forces the name-by-name walk; by default the kernel's call is used where there is one.

    Attributes:
        room: the account of what transfers put into it.
        logs: of the job, beside the directory.
        naming: held for the moment in which a file gets or loses its name, so that what was found out about the name
            just before still holds (but the job itself may do what it likes).
    """

    def __init__(self, root: Path | str, *, openat2: bool | None = None) -> None:
        given = Path(root)
        self.root = Path(os.path.realpath(given.parent)) / given.name
        self._path = os.fsencode(self.root)
        self._openat2 = syscalls.have_openat2() if openat2 is None else openat2
        self._identity: tuple[int, int] | None = None
        self.room = Room(self.size_bytes)
        self.logs = LogFiles(self)
        self.naming = threading.RLock()
        self._removing = False
        self._held: int | None = None

    def __repr__(self) -> str:
        return f"Sandbox({str(self.root)!r})"

    def create(self) -> None:
        """Make the directory with mode 0700, and those above it that are missing.

        Raises:
            Conflict: it exists already.
            NoSpace, Forbidden: the disk is full, the place is not ours to write.
        """
        self._removing = False
        with translated(self._path, writing=True):
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mkdir(self._path, 0o700)
        with self.opened():
            pass

    def remove(self) -> None:
        """Remove the directory and all that is in it, and the logs, never following a link; nothing there is fine.

        If the job has moved its directory, that is removed as well, as long as it is in the directory of all sandboxes.
        From the first moment on nothing more is put into it through us, or it might never be empty.

        Raises:
            PRouterError: code ``not_removed``: something resisted (immutable, a mount point, still being written to);
                all else is gone, and the detail names the first that stayed.
        """
        try:
            parent = os.open(self.root.parent, os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise refusal(error, self._path, writing=True) from error
        self._removing = True
        try:
            trees.remove(parent, os.fsencode(self.root.name))
            self.remove_moved()
            with translated(self._path, writing=True):
                self.logs.remove()
        except trees.NotRemoved as error:
            self._removing = False
            raise PRouterError(f"sandbox '{shown(self._path)}' is not removed: {error}", code="not_removed") from error
        finally:
            os.close(parent)

    def hold(self) -> None:
        """Keep the directory open while its job lives, so that it can be found wherever the job moves it.

        Raises:
            NotFound: it is gone, or another is in its place.
        """
        with self.opened() as fd:
            self.let_go()
            self._held = os.dup(fd)

    def rest(self) -> None:
        """The job has ended: let go of the directory, unless it was moved and could not be found again."""
        if self._held is not None and _identity(os.fstat(self._held)) == _identity_at(self.root):
            self.let_go()

    def let_go(self) -> None:
        """Close the directory; closing twice is fine."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def remove_moved(self) -> None:
        """Remove the directory where its job has moved it to, if that is in the directory of all sandboxes.

        Raises:
            NotRemoved: something of it stayed.
        """
        if self._held is None:
            return
        here = Path(os.readlink(f"/proc/self/fd/{self._held}"))
        if here != self.root and here.is_relative_to(self.root.parent):
            with contextlib.suppress(FileNotFoundError):  # It is gone already.
                parent = os.open(here.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    info = os.stat(here.name, dir_fd=parent, follow_symlinks=False)
                    if _identity(info) == _identity(os.fstat(self._held)):
                        trees.remove(parent, os.fsencode(here.name))
                finally:
                    os.close(parent)
        self.let_go()

    def size_bytes(self) -> int:
        """Disk space of what is in it and of its logs, in bytes: allocated blocks, so holes count nothing, hard links
        once.
        """
        return trees.disk_usage(self) + self.logs.size_bytes()

    def kept(self) -> dict[str, list[int]]:
        """The inodes of the directory and of the logs, JSON-ready, for `adopt` after a restart of the agent."""
        own = {} if self._identity is None else {"sandbox": list(self._identity)}
        return own | self.logs.kept()

    def adopt(self, kept: Mapping[str, Any]) -> None:
        """Take up what `kept` gave an earlier agent.

        Raises:
            TypeError, ValueError: it is something else.
        """
        if "sandbox" in kept:
            device, inode = kept["sandbox"]
            self._identity = (int(device), int(inode))
        self.logs.adopt(kept)

    def directory(self, path: bytes) -> Path:
        """The absolute path of a directory inside, links resolved, for example a job's working directory.

        Raises:
            NotFound, Forbidden, InvalidRequest: there is none, it leaves the sandbox, it is no path.
        """
        parts = split(path, root_allowed=True)
        with translated(path):
            fd = self.open(parts, os.O_PATH | os.O_DIRECTORY)
            try:
                return Path(os.readlink(f"/proc/self/fd/{fd}"))
            finally:
                os.close(fd)

    def refuse_removed(self) -> None:
        """Raise `NotFound` when it is being removed; for those who hold directories open meanwhile."""
        if self._removing:
            raise NotFound("the job's sandbox is gone: it is being removed")

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The directory itself as an O_PATH descriptor.

        Opened anew each time, so that thousands of idle jobs hold no descriptor, and checked to be the very directory
        it was at first: a job that renames its sandbox and puts something else there gets nothing through us.

        Raises:
            NotFound: it is gone, or another is in its place.
        """
        self.refuse_removed()
        try:
            fd = os.open(self._path, OPEN_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("the job's sandbox is gone") from error
        try:
            info = os.fstat(fd)
            if self._identity is None:
                self._identity = (info.st_dev, info.st_ino)
            elif self._identity != (info.st_dev, info.st_ino):
                raise NotFound("the job's sandbox is gone: another directory is in its place")
            yield fd
        finally:
            os.close(fd)

    def open(self, parts: Sequence[bytes], flags: int) -> int:
        """Open what exists at `parts`, following links that stay inside. The caller closes the descriptor.

        Args:
            parts: as `split` gives them; none means the sandbox itself.
            flags: of open(2), without O_CREAT. O_NOFOLLOW: the last name is not followed.

        Raises:
            OSError: EXDEV when the path leaves the sandbox.
        """
        with self.opened() as root:
            return open_beneath(root, b"/".join(parts), flags, self._path, openat2=self._openat2)

    def open_file(self, parts: Sequence[bytes], flags: int) -> int:
        """Open a regular file for reading or writing in place. The caller closes the descriptor.

        What kind of thing it is is known before it is opened, so that no fifo, device or socket is ever touched.

        Args:
            flags: O_RDONLY or O_WRONLY, and O_NOFOLLOW where the last name must not be a link.

        Raises:
            IsDirectory, Forbidden: a directory, or a fifo, socket, device or link has the name.
            OSError: as `open`; EAGAIN when another process holds a lease on it.
        """
        found = self.open(parts, os.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW)
        try:
            mode = os.fstat(found).st_mode
            if stat.S_ISDIR(mode):
                raise IsDirectory(f"'{shown(b'/'.join(parts))}' is a directory")
            if not stat.S_ISREG(mode):
                raise Forbidden(f"'{shown(b'/'.join(parts))}' is a fifo, socket, device or link, not a file")
            return os.open(f"/proc/self/fd/{found}", flags & ~os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(found)

    def make_directory(self, parts: Sequence[bytes], made: Callable[[], None] | None = None) -> int:
        """An O_PATH descriptor, for the caller to close, of the directory at `parts`, made where it is missing.

        Args:
            made: called after each directory that was made; what it raises ends this.

        Raises:
            OSError: ENOTDIR when something else is in the way.
        """
        try:
            return self.open(parts, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            pass
        here = self.open((), os.O_PATH | os.O_DIRECTORY)
        for count in range(1, len(parts) + 1):
            try:
                below = self._make_one(here, parts, count, made)
            finally:
                os.close(here)
            here = below
        return here

    def _make_one(self, parent: int, parts: Sequence[bytes], count: int, made: Callable[[], None] | None) -> int:
        name = parts[count - 1]
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
            if made is not None:
                made()
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            return self.open(parts[:count], os.O_PATH | os.O_DIRECTORY)  # a link that was there before

    @contextlib.contextmanager
    def parent(self, parts: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
        """The directory that holds the last name of `parts`, as an O_PATH descriptor.

        Raises:
            Conflict: `parts` is the sandbox itself, which has no place inside.
            OSError: as `open` and `make_directory`.
        """
        if not parts:
            raise Conflict("this is the sandbox itself")
        fd = self.make_directory(parts[:-1]) if make else self.open(parts[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _identity_at(path: Path) -> tuple[int, int] | None:
    """Device and inode number of what is at a path; None for nothing."""
    try:
        return _identity(os.lstat(path))
    except OSError:
        return None
