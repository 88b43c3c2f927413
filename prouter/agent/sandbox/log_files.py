"""Files of a job's two logs, beside the sandbox, so that nothing a job does in its own directory affects them.

``JOBS_ROOT/.job-logs/<uid>.stdout`` and ``….stderr`` hold what the job wrote. The agent creates both before the
job's first process and remembers their inodes: it reads, serves and cuts only these, whatever has their names later.
In the sandbox the logs appear under the names ``.pagent.stdout`` and ``.pagent.stderr``: requests for these names,
listings and archives use the logs. The job itself finds a copy of the beginning there (docs/decisions/logs.md).

Jobs that an older version of the agent started have their logs in the sandbox. These are used where they are, as long
as they are regular files with one name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, final

from prouter.agent.sandbox import rights
from prouter.agent.sandbox.paths import translated
from prouter.errors import Forbidden
from prouter.keeper.log_gaps import LOG_FILES, LOGS_DIRECTORY, TIMES, UNLISTED, log_names, remove_logs

__all__ = ["JobDirectory", "LogFiles"]

_IN_SANDBOX = {stream: name for name, stream in LOG_FILES.items()}
_BLOCK_BYTES = 512  # st_blocks is in units of 512 bytes (stat(2)).
_TRIES = 10

Identity = tuple[int, int]
"""Device and inode number."""


class JobDirectory(Protocol):
    """The parts of a sandbox that its logs need, in whose directory they appear."""

    root: Path

    def open_file(self, parts: Sequence[bytes], flags: int) -> int:
        """Open a regular file in the sandbox."""

    def parent(self, parts: Sequence[bytes]) -> AbstractContextManager[int]:
        """Return the directory of the last name of `parts`, as an O_PATH descriptor."""


@final
class LogFiles:
    """The files of one job's logs. Safe to use from several threads.

    Args:
        sandbox: the job's sandbox.
    """

    def __init__(self, sandbox: JobDirectory) -> None:
        self._sandbox = sandbox
        self._directory = sandbox.root.parent / LOGS_DIRECTORY
        self._uid = sandbox.root.name
        self._names = {stream: f"{self._uid}.{stream}" for stream in _IN_SANDBOX}
        self._paths = {stream: f"{self._directory}/{name}" for stream, name in self._names.items()}
        self._identities: dict[str, Identity] = {}
        self._plain = False

    def path(self, stream: str) -> Path:
        """Return the path of the log of this stream (``stdout`` or ``stderr``)."""
        return Path(self._paths[stream])

    @rights.as_agent
    def create(self) -> dict[str, int]:
        """Create both logs, empty, replacing files with their names.

        Returns:
            Descriptors for the caller to close, open for reading.

        Raises:
            NoSpace, Forbidden: the disk is full, the place is not ours to write.
        """
        made: dict[str, int] = {}
        try:
            for stream, path in self._paths.items():
                with translated(os.fsencode(path), writing=True):
                    made[stream] = self._create(path)
        except BaseException:
            for fd in made.values():
                os.close(fd)
            raise
        self._identities = {stream: _identity(os.fstat(fd)) for stream, fd in made.items()}
        self._plain = True
        return made

    def _create(self, path: str) -> int:
        for _ in range(_TRIES):
            try:
                return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self._directory.mkdir(mode=0o700, exist_ok=True)  # Removed together with the last log of another job.
            except FileExistsError:
                os.unlink(path)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    def open(self, stream: str) -> int:
        """Open a log for reading. The caller closes the descriptor.

        Raises:
            FileNotFoundError: it does not exist (yet), or another file has its name.
            Forbidden: a log that an older version left in the sandbox is no longer a regular file with one name.
        """
        try:
            return self._open_beside(stream)
        except FileNotFoundError:
            if stream in self._identities:
                raise
        return self._open_inside(stream)

    @rights.as_agent
    def _open_beside(self, stream: str) -> int:
        path = self._paths[stream]
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or self._identities.get(stream, _identity(info)) != _identity(info):
            raise FileNotFoundError(errno.ENOENT, f"another file has the name of the job's {stream}")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if _identity(os.fstat(fd)) != _identity(info):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, f"the job's {stream} is being replaced")
        return fd

    def _open_inside(self, stream: str) -> int:
        fd = self._sandbox.open_file((_IN_SANDBOX[stream],), os.O_RDONLY | os.O_NOFOLLOW)
        if os.fstat(fd).st_nlink != 1:
            os.close(fd)
            raise Forbidden(f"the job's {stream} is a file with several names: not one that the agent made")
        return fd

    def made_here(self, stream: str) -> bool:
        """Return whether the agent created the log, so that it is no other file, whatever links lead to it."""
        return stream in self._identities

    @rights.as_agent
    def leads_to(self, stream: str, fd: int) -> bool:
        """Return whether the log's name still leads to this open file."""
        with contextlib.suppress(OSError):
            return _identity(os.lstat(self._paths[stream])) == _identity(os.fstat(fd))
        return False

    @rights.as_agent
    def status(self, stream: str) -> os.stat_result:
        """Return the status of a log.

        Raises:
            FileNotFoundError: there is none.
        """
        return os.lstat(self._paths[stream])

    @rights.as_agent
    def allocated(self, stream: str) -> int:
        """Return the disk space of a log in bytes; 0 if there is none."""
        try:
            info = os.lstat(self._paths[stream])
        except OSError:
            try:
                info = os.lstat(self._sandbox.root / os.fsdecode(_IN_SANDBOX[stream]))
            except OSError:
                return 0
        return info.st_blocks * _BLOCK_BYTES if stat.S_ISREG(info.st_mode) else 0

    @rights.as_agent
    def size_bytes(self) -> int:
        """Return the disk space of all files beside the sandbox in bytes."""
        total = 0
        for name in log_names(self._uid):
            with contextlib.suppress(OSError):
                total += os.lstat(self._directory / name).st_blocks * _BLOCK_BYTES
        return total

    @contextlib.contextmanager
    def directory(self, *, make: bool = False) -> Iterator[int]:
        """Return the directory of the logs, as an O_PATH descriptor.

        Args:
            make: create it if missing, for jobs whose older version left the log in the sandbox.
        """
        if make:
            self._plain = False
            self._directory.mkdir(mode=0o700, exist_ok=True)
        with rights.own():
            fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    # The logs as requests see them in the sandbox.

    @rights.as_agent
    def listed(self, name: bytes) -> bool:
        """Return whether this name in the sandbox's own directory stands for a log."""
        stream = LOG_FILES.get(name)
        if stream is None or not os.path.lexists(self._paths[stream]):
            return False
        return not os.path.lexists(self._paths[stream] + UNLISTED)

    def open_listed(self, name: bytes) -> int | None:
        """Open the log that this name in the sandbox's own directory stands for; None if it stands for none."""
        if not self.listed(name):
            return None
        with contextlib.suppress(FileNotFoundError):
            return self._open_beside(LOG_FILES[name])
        return None

    def unlist(self, name: bytes) -> bool:
        """Take a log's name out of the sandbox, for a request to delete it; return whether it stood for a log.

        The log itself stays readable.
        """
        if not self.listed(name):
            return False
        self._plain = False
        with rights.own():
            os.close(os.open(self._paths[LOG_FILES[name]] + UNLISTED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with contextlib.suppress(FileNotFoundError, IsADirectoryError), self._sandbox.parent((name,)) as parent:
            os.unlink(name, dir_fd=parent)
        return True

    # Life of the files.

    @rights.as_agent
    def remove(self) -> None:
        """Delete all files of the logs. Missing ones are ignored.

        Raises:
            OSError: a file cannot be deleted.
        """
        # Most logs have no files beside them, and most jobs are short.
        plain = [name + ending for name in self._names.values() for ending in ("", TIMES)]
        remove_logs(self._directory.parent, plain if self._plain else log_names(self._uid))

    def kept(self) -> dict[str, list[int]]:
        """Return the logs' inodes, JSON-ready, for `adopt` after a restart of the agent."""
        return {stream: list(identity) for stream, identity in self._identities.items()}

    def adopt(self, kept: Mapping[str, Any]) -> None:
        """Restore the inodes that `kept` returned to an earlier agent.

        Raises:
            TypeError, ValueError: the value has another form.
        """
        for stream in _IN_SANDBOX:
            if stream in kept:
                device, inode = kept[stream]
                self._identities[stream] = (int(device), int(inode))


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino
