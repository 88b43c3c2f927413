"""The journal of jobs on disk, with which the next keeper cleans up after one that was killed; removal of sandboxes.

STATE_DIR/jobs holds one file for each job, named after the job. The file holds the path of the sandbox, a NUL byte and
the path of the job's control group; both may be empty. The keeper writes it before it starts the job's first process
and deletes it when the agent drops the job. Nothing is synced to disk, because no process survives a power failure. The
keepers of all versions read this format.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from prouter.keeper.log_gaps import log_names, remove_logs

__all__ = ["Entry", "Journal", "remove_sandbox"]


class Entry(NamedTuple):
    """One job in the journal: the directories of its sandbox and of its control group, None for none."""

    sandbox: str | None
    group: str | None


class Journal:
    """The jobs of one state directory's keeper."""

    def __init__(self, state_dir: str) -> None:
        self._directory = os.path.join(state_dir, "jobs")
        os.makedirs(self._directory, mode=0o700, exist_ok=True)

    def add(self, job: str, sandbox: str | None, group: str | None = None) -> None:
        """Write a job to the journal, or write it again after a change.

        Raises:
            OSError: it cannot be written; an earlier line about the job stays.
        """
        path = self._path(job)
        known = os.path.exists(path)
        text = os.fsencode(f"{sandbox or ''}\0{group or ''}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Write in place: on a full disk there is space for the old content, but not for another file.
            if os.pwrite(fd, text, 0) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(fd, len(text))
        except OSError:
            if not known:
                self.drop(job)
            raise
        finally:
            os.close(fd)

    def drop(self, job: str) -> None:
        """Delete a job from the journal."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(job))

    def entries(self) -> dict[str, Entry]:
        """All jobs of the journal, by uid."""
        found: dict[str, Entry] = {}
        for job in os.listdir(self._directory):
            with open(self._path(job), "rb") as file:
                sandbox, _, group = os.fsdecode(file.read()).partition("\0")
            found[job] = Entry(sandbox or None, group or None)
        return found

    def _path(self, job: str) -> str:
        return os.path.join(self._directory, job)


def remove_sandbox(path: str, log: Callable[[str, str], None]) -> None:
    """Delete a sandbox and its logs. Links are removed, never followed. What cannot be removed is logged and stays."""
    import shutil  # Late: it takes memory, and only a keeper that lost its agent needs it.

    def repair(_: Callable[..., object], name: str, failure: tuple[object, BaseException, object]) -> None:
        error = failure[1]
        if isinstance(error, FileNotFoundError):
            return
        if not _unlock(os.path.dirname(name)) and not _unlock(name):
            log("error", f"event=sandbox_not_removed path={name!r} error={str(error)!r}")
        elif os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name, onerror=repair)
        else:
            _retry(name)

    def _retry(name: str) -> None:
        try:
            os.unlink(name)
        except OSError as error:
            log("error", f"event=sandbox_not_removed path={name!r} error={str(error)!r}")

    shutil.rmtree(path, onerror=repair)
    try:
        remove_logs(os.path.dirname(path), log_names(os.path.basename(path)))
    except OSError as error:
        log("error", f"event=logs_not_removed path={path!r} error={str(error)!r}")


def _unlock(directory: str) -> bool:
    """Give the owner all rights on a directory; return whether that was necessary and possible.

    Root needs no such rights, and must not use paths through directories of other users.
    """
    if os.geteuid() == 0:
        return False
    try:
        mode = os.lstat(directory).st_mode
        if not stat.S_ISDIR(mode) or mode & 0o700 == 0o700:
            return False
        os.chmod(directory, 0o700)
    except OSError:
        return False
    return True
