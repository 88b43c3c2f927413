"""Paths for the unix sockets of jobs, short enough for the kernel."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from prouter.agent.sandbox import trees
from prouter.errors import StartFailed
from prouter.processes.users import User

__all__ = ["LONGEST_SOCKET", "SocketPlaces", "discard"]

LONGEST_SOCKET = 100
"""Longest path in bytes; the kernel accepts 107 (unix(7)), but some programs append to the name while they bind."""


class SocketPlaces:
    """Short paths for unix sockets: in the job's sandbox if its path is short enough, else in a private directory. That
    also holds short links to directories for sockets.

    Args:
        root: the agent's jobs root; agents with different roots get different private directories.
        shared: whether jobs run as users of their own, who reach their own sockets in the private directory.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self._shared = shared
        name = f"prouter-{os.geteuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
        # /run is seen by jobs that have a /tmp of their own.
        run = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        bases = (*(("/run",) if shared else ()), run, tempfile.gettempdir(), "/tmp")  # noqa: S108
        self._private = next(Path(base) / name for base in bases if _fits(Path(base) / name / ("x" * 18)))

    def path(self, sandbox: Path, user: User | None = None, *, same_machine: bool = True) -> Path:
        """Return the path on which the job's server has to listen.

        Args:
            user: the job's user, if it has one of its own.
            same_machine: whether the job runs on this machine; another one shares the sandbox alone.

        Raises:
            StartFailed: there is no place for the socket.
        """
        near = sandbox / ".pagent.sock"
        if _fits(near):
            return near
        if not same_machine:
            raise StartFailed(
                f"the sandbox's path is too long for a unix socket ({near}: more than {LONGEST_SOCKET} bytes): start "
                'the job with {"port": "assign"}, or the agent with a shorter jobs.root',
                job=sandbox.name,
            )
        self._make_private(sandbox.name)
        place = self._private / sandbox.name[:16]
        if user is None:
            return place
        try:
            place.mkdir(mode=0o700)
            os.chown(place, user.uid, user.gid, follow_symlinks=False)
        except OSError as error:
            raise StartFailed(f"no place for the job's unix socket: {error}", job=sandbox.name) from error
        return place / "s"

    def link(self, directory: Path, uid: str) -> Path:
        """Create a short link to a job's directory.

        Raises:
            StartFailed, OSError: the link cannot be created.
        """
        self._make_private(uid)
        link = self._private / f"t{uid[:15]}"
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
        return link

    def _make_private(self, uid: str) -> None:
        try:
            self._private.mkdir(mode=0o700, exist_ok=True)
            found = self._private.lstat()
            if self._shared and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                self._private.chmod(0o711)
                found = self._private.lstat()
        except OSError as error:
            raise StartFailed(f"no place for the job's unix socket: {error}", job=uid) from error
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        ours = ours and not found.st_mode & (0o066 if self._shared else 0o077)
        if not ours:
            raise StartFailed(f"'{self._private}' is not a private directory of the agent's user", job=uid)

    def sweep(self, kept: set[Path]) -> None:
        """Remove the sockets and links of jobs that no longer exist, and the private directory if it is then empty."""
        if not self._private.is_dir() or self._private.is_symlink() or self._private.stat().st_uid != os.geteuid():
            return
        needed = kept | {path.parent for path in kept}
        for entry in self._private.iterdir():
            if entry not in needed:
                discard(entry)
        if not kept:
            self._private.rmdir()


def discard(place: Path) -> None:
    """Remove a socket, or a directory in which a job's user may have put anything.

    Raises:
        OSError: it cannot be removed.
    """
    parent = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        trees.remove(parent, os.fsencode(place.name))
    except trees.NotRemoved as error:
        raise OSError(str(error)) from error
    finally:
        os.close(parent)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_SOCKET
