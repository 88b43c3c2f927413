"""A job's directory for temporary files, in its sandbox, so that they count for its quota and are removed with it.

Programs make unix sockets below TMPDIR, and a socket's path has at most 107 bytes (unix(7)), which a sandbox's path may
use up by itself. Then the job gets a short link to the directory instead, in the private directory that also holds the
sockets of servers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.socket_places import SocketPlaces
from prouter.errors import PRouterError, StartFailed

__all__ = ["SCRATCH_NAME", "SOCKET_NAME", "Scratch", "make_scratch"]

SCRATCH_NAME = b".pagent.tmp"
"""The directory's name in the sandbox."""
SOCKET_NAME = 32
"""Most bytes that common programs need for names below TMPDIR: Python's multiprocessing, ssh-agent, dbus."""
_LONGEST_SOCKET_PATH = 107
_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TMUX_TMPDIR")

_log = logging.getLogger("prouter.agent")


class Scratch:
    """One job's directory for temporary files.

    Attributes:
        directory: the directory itself.
        link: a short link to it, if its own path is too long for sockets.
    """

    def __init__(self, directory: Path, link: Path | None = None) -> None:
        self.directory = directory
        self.link = link

    def variables(self) -> dict[str, str]:
        """Variables that name the directory; tmux does not read TMPDIR."""
        return dict.fromkeys(_VARIABLES, str(self.link or self.directory))

    def release(self) -> None:
        """Remove the link; the directory is removed with the sandbox. Idempotent."""
        if self.link is not None:
            with contextlib.suppress(OSError):  # Removed already.
                self.link.unlink()


def make_scratch(sandbox: Sandbox, places: SocketPlaces | None, socket_name: int) -> Scratch:
    """Create the directory of a job that is about to start.

    Args:
        places: creates short links; None if the job runs on another machine, which would not have them.
        socket_name: bytes that the names of sockets in it may need, with their slash.

    Raises:
        StartFailed: the directory cannot be created.
    """
    uid = sandbox.root.name
    try:
        with sandbox.acting(), sandbox.opened() as root:
            _make_directory(root)
    except OSError as error:
        text = f"no directory for temporary files could be made: '{os.fsdecode(SCRATCH_NAME)}': {error.strerror}"
        raise StartFailed(text, job=uid) from error
    directory = sandbox.root / os.fsdecode(SCRATCH_NAME)
    if places is None or len(os.fsencode(directory)) + socket_name <= _LONGEST_SOCKET_PATH:
        return Scratch(directory)
    try:
        return Scratch(directory, places.link(directory, uid))
    except (OSError, PRouterError) as error:
        _log.warning("event=no_short_tmpdir job=%s error=%r", uid, str(error))
        return Scratch(directory)


def _make_directory(root: int) -> None:
    try:
        os.mkdir(SCRATCH_NAME, 0o700, dir_fd=root)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(SCRATCH_NAME, dir_fd=root, follow_symlinks=False).st_mode):
            raise
        os.chmod(SCRATCH_NAME, 0o700, dir_fd=root)
