"""Names of a job's logs, and the gap at the beginning of a log that was cut.

Standard library only, because the keeper uses it. The agent bounds a log by giving its oldest blocks back to the file
system (`prouter.agent.logs`). The file keeps its length, so positions in it never change, and the dropped part is a
hole at its beginning.
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
    "TIMES",
    "UNLISTED",
    "first_data",
    "gap_marker",
    "log_names",
    "remove_logs",
]

LOG_FILES = {b".pagent.stdout": "stdout", b".pagent.stderr": "stderr"}
"""By name in the sandbox, the stream of a log."""

LOGS_DIRECTORY = ".job-logs"
"""Directory of all logs in ``jobs.root``."""

COPIED = 256 << 10
"""Bytes of a log's beginning that the log writer copies into the sandbox."""

COPY_END = b"\n[prouter: the rest is in the job's log only]\n"
"""Last line of a copy that does not hold the whole log."""

TIMES = ".times"
"""Suffix of the file that says when the job wrote what (`prouter.keeper.log_times`)."""

UNLISTED = ".unlisted"
"""Suffix of the file that marks a log as not listed in the sandbox."""


def log_names(uid: str) -> list[str]:
    """All names that the files of a job's logs may have in `LOGS_DIRECTORY`."""
    return [
        f"{uid}.{stream}{ending}"
        for stream in LOG_FILES.values()
        for ending in ("", TIMES, ".kept", ".kept.new", UNLISTED)
    ]


def remove_logs(root: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Delete files of logs in ``jobs.root``, and their directory if it is then empty. Missing files are no error.

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
    """The first position at or after `offset` that is not in a hole; the file's size if there is none.

    On a file system without holes it is `offset` itself.
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
    """The line that replaces `dropped` bytes for readers."""
    return b"[prouter: %d bytes dropped]\n" % dropped
