"""The directories of an agent's jobs under ``jobs.root``: one home per job, with its sandbox and what is beside it.

Only one agent may use a root at a time; it then may remove whatever home is left there of a job that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from prouter.agent.paths import translated
from prouter.agent.ports import SocketPlaces
from prouter.agent.sandbox import Sandbox
from prouter.errors import Conflict, Forbidden, InvalidRequest, PRouterError

__all__ = ["Homes"]

_UID = re.compile(r"[0-9a-f]{32}")
_LOCK_NAME = ".agent.lock"

_log = logging.getLogger("prouter.agent")


class Homes:
    """All homes of one agent.

    Args:
        root: ``jobs.root``; made with mode 0700 if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.sockets = SocketPlaces(self.root)
        self._lock: int | None = None

    def open(self) -> None:
        """Take the root for this agent.

        Raises:
            Conflict: another agent uses it.
            Forbidden: it cannot be used, or other users may write to it.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self.root.stat().st_mode
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise Forbidden(
                    f"jobs.root '{self.root}' may be written to by others; give the agent a directory of its own"
                )
            self._lock = os.open(self.root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Conflict(f"jobs.root '{self.root}' is in use by another agent; each needs one of its own") from None
        except OSError as error:
            raise Forbidden(f"jobs.root '{self.root}' cannot be used: {error}") from error

    def close(self) -> None:
        """Let another agent have the root."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def home(self, uid: str) -> Path:
        """Where a job lives.

        Raises:
            InvalidRequest: that is no uid of a job; it must not become part of a path.
        """
        if not _UID.fullmatch(uid):
            raise InvalidRequest("Invalid request: a job's uid is 32 hex digits")
        return self.root / uid

    def make(self, home: Path, sandbox: Sandbox) -> None:
        """Make a job's home and its sandbox, both with mode 0700.

        Raises:
            NoSpace, Forbidden, Conflict: it cannot be made.
        """
        with translated(os.fsencode(home), writing=True):
            home.mkdir(mode=0o700)
        try:
            sandbox.create()
        except PRouterError:
            with contextlib.suppress(OSError):
                home.rmdir()
            raise

    def remove(self, home: Path) -> None:
        """Remove a home and all that is in it. May take long: not for the event loop, unless `is_small`.

        Raises:
            PRouterError: something in it resisted.
        """
        Sandbox(home).remove()

    def is_small(self, home: Path) -> bool:
        """Whether removing it takes no noticeable time: a few files and no directories."""
        try:
            with os.scandir(home / "sandbox") as entries:
                for count, entry in enumerate(entries):
                    if count >= 16 or entry.is_dir(follow_symlinks=False):
                        return False
        except OSError:
            return False
        return True

    def sweep(self, kept: Collection[str], sockets: set[Path]) -> None:
        """Remove the homes of jobs that are gone, and their sockets; what is no home is left alone."""
        for entry in self.root.iterdir():
            if entry.name in kept or not _UID.fullmatch(entry.name) or entry.is_symlink() or not entry.is_dir():
                continue
            try:
                self.remove(entry)
            except PRouterError as error:
                _log.warning("event=leftover_not_removed job=%s error=%r", entry.name, error.detail)
            else:
                _log.info("event=leftover_removed job=%s", entry.name)
        self.sockets.sweep(sockets)
