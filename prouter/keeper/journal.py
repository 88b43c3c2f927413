"""What a keeper leaves on disk so that its successor can clean up, should it be killed; and removal of sandboxes.

One file per job in STATE_DIR/jobs, named after the job, holding the sandbox to remove (empty for none), NUL, and the
directory of its control group, likewise. It is made before the job's first process and removed when the agent forgets
the job. Not synced to disk: no process survives a
power cut.
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
    """What is written down of a job: directories of its sandbox and of its control group."""

    sandbox: str | None
    group: str | None


class Journal:
    """The jobs a keeper of this state directory is responsible for."""

    def __init__(self, state_dir: str) -> None:
        self._directory = os.path.join(state_dir, "jobs")
        os.makedirs(self._directory, mode=0o700, exist_ok=True)

    def add(self, job: str, sandbox: str | None, group: str | None = None) -> None:
        """Write down a job, its sandbox and its control group; again if any of it changed.

        Raises:
            OSError: it cannot be written; what was known of the job stays.
        """
        path = self._path(job)
        known = os.path.exists(path)
        text = os.fsencode(f"{sandbox or ''}\0{group or ''}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # In place: on a full disk there is room for what was there before, not for another file.
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
        """Strike a job out."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(job))

    def entries(self) -> dict[str, Entry]:
        """The jobs written down."""
        found: dict[str, Entry] = {}
        for job in os.listdir(self._directory):
            with open(self._path(job), "rb") as file:
                sandbox, _, group = os.fsdecode(file.read()).partition("\0")
            found[job] = Entry(sandbox or None, group or None)
        return found

    def _path(self, job: str) -> str:
        return os.path.join(self._directory, job)


def remove_sandbox(path: str, log: Callable[[str, str], None]) -> None:
    """Delete a sandbox and the logs beside it; links are removed, never followed. What cannot be removed is logged and
    left.
    """
    import shutil  # Late: it is large, and only needed when the agent is lost.

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
    """Let the owner change a directory that forbids it; whether it was one."""
    try:
        mode = os.lstat(directory).st_mode
        if not stat.S_ISDIR(mode) or mode & 0o700 == 0o700:
            return False
        os.chmod(directory, 0o700)
    except OSError:
        return False
    return True
