"""The cut part of a job's log: where the kept part begins, and the line that stands for what was dropped.

The agent bounds a log by giving its oldest blocks back to the file system (prouter.agent.logs); the file keeps its
length, so positions in it never change, and what was dropped is a hole at its start.
"""

from __future__ import annotations

import errno
import os

__all__ = ["LOG_FILES", "first_data", "gap_marker"]

LOG_FILES = {b".pagent.stdout": "stdout", b".pagent.stderr": "stderr"}


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
