"""A job's sandbox: one directory that is created and removed with the job.

All requests reach files through `Sandbox.open` and `Sandbox.make_directory`, which never leave the directory, whatever
links the job makes and whenever it makes them (docs/decisions/confinement.md). They take names from
`prouter.agent.sandbox.paths.split` and raise plain `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prouter.agent.sandbox import rights, syscalls, trees
from prouter.agent.sandbox.beneath import open_beneath
from prouter.agent.sandbox.log_files import LogFiles
from prouter.agent.sandbox.paths import refusal, shown, split, translated
from prouter.agent.sandbox.quota import Quota
from prouter.errors import Conflict, Forbidden, IsDirectory, NotFound, PRouterError
from prouter.processes.users import User

__all__ = ["OPEN_DIRECTORY", "Sandbox"]

_log = logging.getLogger("prouter.agent")

_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_SHUT = 0o770
"""Mode of an ended job's sandbox, which belongs to the agent, and to a group that only the agent uses."""

OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sandbox:
    """One job's directory. Safe to use from several threads at once.

    Args:
        root: its path. Links above it are resolved once, here; the directory itself must not be a link.
        openat2: False forces the name-by-name walk; by default the kernel's call is used if available.

    Attributes:
        quota: the quota that all transfers into it share.
        logs: the files of the job's logs, beside the directory.
        user: whom it belongs to and the job runs as; None for the agent's own user.
        is_shut: whether `shut` has kept its user out.
        naming: a lock, held while a file gets or loses its name, so that a check just before still holds (against all
            but the job itself).
    """

    def __init__(self, root: Path | str, *, openat2: bool | None = None) -> None:
        given = Path(root)
        self.root = Path(os.path.realpath(given.parent)) / given.name
        self._path = os.fsencode(self.root)
        self._openat2 = syscalls.have_openat2() if openat2 is None else openat2
        self._identity: tuple[int, int] | None = None
        self.quota = Quota(self.size_bytes)
        self.logs = LogFiles(self)
        self.naming = threading.RLock()
        self._removing = False
        self._held: int | None = None
        self.user: User | None = None
        self.is_shut = False

    def __repr__(self) -> str:
        return f"Sandbox({str(self.root)!r})"

    def belong_to(self, user: User | None) -> None:
        """Set the user to whom it belongs, before it is created or adopted."""
        self.user = user
        if user is not None:
            rights.put_in_use()

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Use files with the rights of the job's user in the block, which must not switch greenlets."""
        return rights.acting(self.user)

    @rights.as_agent
    def create(self) -> None:
        """Create the directory with mode 0700, and missing ones above it.

        Raises:
            Conflict: it exists already.
            NoSpace, Forbidden: the disk is full, the place is not ours to write.
        """
        self._removing = False
        with translated(self._path, writing=True):
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mkdir(self._path, 0o700)
            try:
                if self.user is not None:
                    os.chown(self._path, self.user.uid, self.user.gid, follow_symlinks=False)
                with self.opened():
                    pass
            except BaseException:  # Else the next attempt would find a job that nobody has.
                with contextlib.suppress(OSError):
                    os.rmdir(self._path)
                raise

    @rights.as_agent
    def shut(self) -> None:
        """Keep the job's user out, because the job has ended and a later one may get that user."""
        if self.user is None:
            return
        self.is_shut = False
        try:
            with self.opened() as fd:
                path = f"/proc/self/fd/{fd}"
                os.chown(path, os.geteuid(), rights.GROUP)
                for name in _ACCESS_LISTS:  # Its user may have given itself access by name (acl(5)).
                    with contextlib.suppress(OSError):
                        os.removexattr(path, name)
                os.chmod(path, _SHUT)
        except NotFound:
            pass  # The agent has removed it.
        except OSError as error:
            _log.error("event=sandbox_stays_open job=%s user=%s error=%r", self.root.name, self.user.name, str(error))
            return
        self.is_shut = True

    @rights.as_agent
    def remove(self) -> None:
        """Remove the directory with its contents, and the logs, never following a link. Idempotent.

        If the job has moved its directory, it is removed there, if that is in the directory of all sandboxes. From the
        first moment on, no request adds to it, or it might never be empty.

        Raises:
            PRouterError: code ``not_removed``: something could not be removed (immutable, a mount point, still being
                written to); all else is removed, and the detail names the first thing that stayed.
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

    @rights.as_agent
    def hold(self) -> None:
        """Keep the directory open while its job runs, so that it can be found wherever the job moves it.

        Raises:
            NotFound: it is gone, or another is in its place.
        """
        with self.opened() as fd:
            self.let_go()
            self._held = os.dup(fd)

    def rest(self) -> None:
        """Close the directory of an ended job, unless it was moved and could not be found again."""
        if self._held is not None and _identity(os.fstat(self._held)) == _identity_at(self.root):
            self.let_go()

    def let_go(self) -> None:
        """Close the directory. Idempotent."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @rights.as_agent
    def remove_moved(self) -> None:
        """Remove the directory from where its job moved it, if that is in the directory of all sandboxes.

        Raises:
            NotRemoved: a part of it stayed.
        """
        if self._held is None:
            return
        here = Path(os.readlink(f"/proc/self/fd/{self._held}"))
        if here != self.root and here.is_relative_to(self.root.parent):
            with contextlib.suppress(FileNotFoundError):  # Removed already.
                parent = os.open(here.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    info = os.stat(here.name, dir_fd=parent, follow_symlinks=False)
                    if _identity(info) == _identity(os.fstat(self._held)):
                        trees.remove(parent, os.fsencode(here.name))
                finally:
                    os.close(parent)
        self.let_go()

    @rights.as_agent
    def size_bytes(self) -> int:
        """Return the disk space of its contents and logs in bytes: allocated blocks, so holes count nothing, and hard
        links once.
        """
        return trees.disk_usage(self) + self.logs.size_bytes()

    def kept(self) -> dict[str, list[int]]:
        """Return the inodes of the directory and of the logs, JSON-ready, for `adopt` after a restart of the agent."""
        own = {} if self._identity is None else {"sandbox": list(self._identity)}
        return own | self.logs.kept()

    def adopt(self, kept: Mapping[str, Any]) -> None:
        """Restore the inodes that `kept` returned to an earlier agent.

        Raises:
            TypeError, ValueError: the value has another form.
        """
        if "sandbox" in kept:
            device, inode = kept["sandbox"]
            self._identity = (int(device), int(inode))
        self.logs.adopt(kept)

    def directory(self, path: bytes) -> Path:
        """Return the absolute path of a directory inside, links resolved, for example a job's working directory.

        Raises:
            NotFound, Forbidden, InvalidRequest: it does not exist, leaves the sandbox, or is not a path.
        """
        parts = split(path, root_allowed=True)
        with translated(path):
            fd = self.open(parts, os.O_PATH | os.O_DIRECTORY)
            try:
                return Path(os.readlink(f"/proc/self/fd/{fd}"))
            finally:
                os.close(fd)

    def refuse_removed(self) -> None:
        """Raise `NotFound` if the sandbox is being removed; for callers that hold directories open."""
        if self._removing:
            raise NotFound("the job's sandbox is gone: it is being removed")

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Open the directory itself as an O_PATH descriptor.

        It is opened anew each time, so that thousands of idle jobs hold no descriptor, and checked to be the same
        directory as at first, because the job may have put something else in its place.

        Raises:
            NotFound: it is gone, or another is in its place.
        """
        self.refuse_removed()
        rights.check(self.user)
        try:
            with rights.own():
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
        """Open an existing path, following links that stay inside. The caller closes the descriptor.

        Args:
            parts: names from `split`; none means the sandbox itself.
            flags: of open(2), without O_CREAT. O_NOFOLLOW: the last name is not followed.

        Raises:
            OSError: EXDEV if the path leaves the sandbox.
        """
        with self.opened() as root:
            return open_beneath(root, b"/".join(parts), flags, self._path, openat2=self._openat2)

    def open_file(self, parts: Sequence[bytes], flags: int) -> int:
        """Open a regular file for reading or writing in place. The caller closes the descriptor.

        The type is checked before the file is opened, so that no fifo, device or socket is ever opened.

        Args:
            flags: O_RDONLY or O_WRONLY, and O_NOFOLLOW where the last name must not be a link.

        Raises:
            IsDirectory, Forbidden: a directory, or a fifo, socket, device or link has the name.
            OSError: as `open`; EAGAIN if another process holds a lease on it.
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
        """Open the directory at `parts`, created if missing, as an O_PATH descriptor, which the caller closes.

        Args:
            made: called after each created directory; its exceptions pass through.

        Raises:
            OSError: ENOTDIR if something else is in the way.
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
            return self.open(parts[:count], os.O_PATH | os.O_DIRECTORY)  # an earlier link

    @contextlib.contextmanager
    def parent(self, parts: Sequence[bytes], *, make: bool = False) -> Iterator[int]:
        """Open the directory of the last name of `parts`, created if missing, as an O_PATH descriptor.

        Raises:
            Conflict: `parts` is the sandbox itself.
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
    """Return the device and inode number of what is at a path; None for nothing."""
    try:
        return _identity(os.lstat(path))
    except OSError:
        return None
