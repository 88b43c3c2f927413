"""The files into which jobs' outputs go: logs, copies of their beginnings, and the agent's own output."""

from __future__ import annotations

import contextlib
import os
import stat

__all__ = ["copy_path", "open_copy", "open_log", "regular_file"]


def open_log(path: str) -> int:
    """Open a log for the log writer, made with mode 0600 if missing.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a regular file", path)
    return fd


def open_copy(path: str) -> int | None:
    """Make the file for a copy; None if that fails, because the job does not need it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        with contextlib.suppress(OSError):
            os.unlink(path)  # A file of this name was uploaded before the start; the name is reserved.
            return os.open(path, flags, 0o600)
    except OSError:
        pass
    return None


def regular_file(fd: int) -> tuple[int, int] | None:
    """Device and inode number of an open regular file; None for anything else."""
    try:
        info = os.fstat(fd)
    except OSError:
        return None  # The agent was started with this descriptor closed.
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def copy_path(path: str, sandbox: str | None) -> str | None:
    """Path of the copy of a log's beginning in the sandbox; None without a sandbox, or if the log itself is there."""
    if sandbox is None or os.path.dirname(path) == sandbox:
        return None
    return f"{sandbox}/.pagent.{path.rpartition('.')[2]}"
