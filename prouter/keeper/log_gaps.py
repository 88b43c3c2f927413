"""Names of a job's logs; where the kept part of one begins, and the line that stands for what was dropped of it.

Standard library only: used by the keeper. The agent bounds a log by giving its oldest blocks back to the file system
(agent/logs); the file keeps its length, so positions in it never change, and what was dropped is a hole at its
start.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

__all__ = [
    "COPIED",
    "COPY_END",
    "LOGS_DIRECTORY",
    "LOG_FILES",
    "UNLISTED",
    "first_data",
    "gap_marker",
    "log_names",
    "remove_logs",
]

LOG_FILES = {b".pagent.stdout": "stdout", b".pagent.stderr": "stderr"}
"""What a log is called in the sandbox."""

LOGS_DIRECTORY = ".job-logs"
"""Directory of all logs in ``jobs.root``."""

COPIED = 256 << 10
"""Bytes of a log's beginning that are copied into the sandbox."""

COPY_END = b"\n[prouter: the rest is in the job's log only]\n"
"""End of a copy that is not the whole log."""

UNLISTED = ".unlisted"
"""Ending of the mark beside a log that is no longer to be seen in the sandbox."""


def log_names(uid: str) -> list[str]:
    """All names that files of a job's logs may have in `LOGS_DIRECTORY`."""
    return [
        f"{uid}.{stream}{ending}" for stream in LOG_FILES.values() for ending in ("", ".kept", ".kept.new", UNLISTED)
    ]


def remove_logs(root: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Delete these files of logs in ``jobs.root``, and their directory with the last of all; none is fine.

    Raises:
        OSError: one cannot be deleted.
    """
    directory = os.path.join(root, LOGS_DIRECTORY)
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{directory}/{name}")
    with contextlib.suppress(OSError):  # Other jobs have logs.
        os.rmdir(directory)


def first_data(fd: int, offset: int = 0) -> int:
    """The first position at or after `offset` that is not in a hole; the file's size when there is none.

    Where the file system knows no holes, `offset` itself.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return max(offset, os.fstat(fd).st_size)
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return offset
        raise


def gap_marker(dropped: int) -> bytes:
    """The line that a reader gets in place of `dropped` bytes."""
    return b"[prouter: %d bytes dropped]\n" % dropped
