"""Paths for the unix sockets of jobs, short enough for the kernel."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from prouter.errors import StartFailed

__all__ = ["LONGEST_SOCKET", "SocketPlaces"]

LONGEST_SOCKET = 100
"""Longest path in bytes; the kernel accepts 107 (unix(7)), but some programs append to the name while they bind."""


class SocketPlaces:
    """Short paths for unix sockets: in the job's sandbox if its path is short enough, else in a private directory. That
    also holds short links to directories for sockets.

    Args:
        root: the agent's jobs root; agents with different roots get different private directories.
    """

    def __init__(self, root: Path) -> None:
        name = f"prouter-{os.geteuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
        bases = (os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), tempfile.gettempdir(), "/tmp")  # noqa: S108
        self._private = next(Path(base) / name for base in bases if _fits(Path(base) / name / ("x" * 16)))

    def path(self, sandbox: Path) -> Path:
        """Return the path on which the job's server has to listen.

        Raises:
            StartFailed: there is no place for the socket.
        """
        near = sandbox / ".pagent.sock"
        if _fits(near):
            return near
        self._make_private(sandbox.name)
        return self._private / sandbox.name[:16]

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
        except OSError as error:
            raise StartFailed(f"no place for the job's unix socket: {error}", job=uid) from error
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not ours:
            raise StartFailed(f"'{self._private}' is not a private directory of the agent's user", job=uid)

    def sweep(self, kept: set[Path]) -> None:
        """Remove the sockets and links of jobs that no longer exist, and the private directory if it is then empty."""
        if not self._private.is_dir() or self._private.is_symlink() or self._private.stat().st_uid != os.geteuid():
            return
        for entry in self._private.iterdir():
            if entry not in kept:
                entry.unlink(missing_ok=True)
        if not kept:
            self._private.rmdir()


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_SOCKET
