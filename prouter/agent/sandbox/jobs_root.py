"""The directory of an agent's sandboxes, ``jobs.root``: one directory per job, named by its uid, and nothing else.

Only one agent may use a root at a time, so it may remove sandboxes that earlier jobs left there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from prouter.agent.sandbox import trees
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Conflict, Forbidden, InvalidRequest, PRouterError
from prouter.keeper.log_gaps import LOG_FILES, LOGS_DIRECTORY, log_names, remove_logs

__all__ = ["JobsRoot", "is_small"]

_UID = re.compile(r"[0-9a-f]{32}")
_LOCK_NAME = ".agent.lock"
_FEW = 16
_SMALL_LOGS = 16 << 20

_log = logging.getLogger("prouter.agent")


class JobsRoot:
    """All sandboxes of one agent.

    Args:
        path: ``jobs.root``; created with mode 0700 if missing.
        users: whether jobs have users of their own, so that nobody but the agent's user should change the way to it.
        entered: whether these users must be able to enter it to get to their sandboxes.
    """

    def __init__(self, path: Path, *, users: bool = False, entered: bool = False) -> None:
        self._users = users
        self._entered = entered
        self.path = Path(os.path.realpath(path))
        self._lock: int | None = None

    def open(self) -> None:
        """Claim the root for this agent.

        Raises:
            Conflict: another agent uses it.
            Forbidden: the root cannot be used, or other users may write to it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise Forbidden(f"others may write to jobs.root '{self.path}'; give the agent a directory of its own")
            if self._users:
                self._check_way()
            if self._entered:
                self._let_in()
            self._lock = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Conflict(
                f"jobs.root '{self.path}' is in use by another agent; give this one "
                "an identity.uid, or a state.dir and a jobs.root, of its own"
            ) from None
        except OSError as error:
            raise Forbidden(f"jobs.root '{self.path}' cannot be used: {error}") from error

    def _check_way(self) -> None:
        """Refuse a way to the root that users of jobs may change; warn if only others may."""
        for path in (self.path, *self.path.parents):
            info = path.stat()
            shared = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX
            if not shared and info.st_uid in (0, os.geteuid()):
                continue
            if self._entered:
                raise Forbidden(
                    f"jobs.root '{self.path}' may be replaced by other users than root, who may change '{path}': with "
                    "jobs.user, set it to a directory in which only root can make files, for example below /var/lib"
                )
            _log.warning("event=jobs_root_not_safe path=%r reason='others than root may change it'", str(path))

    def _let_in(self) -> None:
        self.path.chmod(0o711)
        closed = [path for path in self.path.parents if not path.stat().st_mode & stat.S_IXOTH]
        if closed:
            raise Forbidden(
                f"jobs.root '{self.path}' cannot be reached by the users of jobs.user, who may not enter "
                f"'{closed[-1]}': set jobs.root to a directory of its own below /var/lib"
            )

    def close(self) -> None:
        """Release the root for another agent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sandbox(self, uid: str) -> Sandbox:
        """Return a job's sandbox, whether it exists or not.

        Raises:
            InvalidRequest: the uid is not one of a job, and must not become part of a path.
        """
        if not _UID.fullmatch(uid):
            raise InvalidRequest("Invalid request: a job's uid is 32 hex digits")
        return Sandbox(self.path / uid)

    def sweep(self, kept: Collection[str]) -> None:
        """Remove the sandboxes of jobs that no longer exist; anything with another kind of name is left alone."""
        self._sweep_logs(kept)
        for entry in self.path.iterdir():
            if entry.name in kept or not _UID.fullmatch(entry.name) or entry.is_symlink() or not entry.is_dir():
                continue
            try:
                Sandbox(entry).remove()
            except PRouterError as error:
                _log.warning("event=leftover_not_removed job=%s error=%r", entry.name, error.detail)
            else:
                _log.info("event=leftover_removed job=%s", entry.name)

    def sweep_moved(self, sandboxes: Iterable[Sandbox]) -> None:
        """Remove sandboxes that their jobs moved; call it after all others were removed."""
        for sandbox in sandboxes:
            try:
                sandbox.remove_moved()
            except trees.NotRemoved as error:
                _log.warning("event=leftover_not_removed job=%s error=%r", sandbox.root.name, str(error))

    def _sweep_logs(self, kept: Collection[str]) -> None:
        directory = self.path / LOGS_DIRECTORY
        if directory.is_symlink() or not directory.is_dir():
            return
        for uid in {name.partition(".")[0] for name in os.listdir(directory)}:
            if uid not in kept and _UID.fullmatch(uid):
                try:
                    remove_logs(self.path, log_names(uid))
                except OSError as error:
                    _log.warning("event=leftover_not_removed job=%s error=%r", uid, str(error))


def is_small(sandbox: Sandbox) -> bool:
    """Return whether removing it takes no noticeable time: few files, no directories, small logs. A large one may take
    long.
    """
    if sum(map(sandbox.logs.allocated, LOG_FILES.values())) > _SMALL_LOGS:
        return False
    try:
        with os.scandir(sandbox.root) as entries:
            for count, entry in enumerate(entries):
                if count >= _FEW or entry.is_dir(follow_symlinks=False):
                    return False
    except OSError:
        return False
    return True
