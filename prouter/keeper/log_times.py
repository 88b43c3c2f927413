"""When a job wrote which part of a log: a file beside the log, with at most one entry a second.

Standard library only, because the log writer uses it. An entry is a time and the position of the first byte that came
at it; all bytes that came less than `STEP` after it follow it without an entry of their own. Entries have one size and
only grow, until the older half of them is dropped.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from itertools import pairwise

from prouter.keeper.log_gaps import LOGS_DIRECTORY, TIMES

__all__ = ["STEP", "LogTimes", "entries", "position_since"]

STEP = 1.0
"""Seconds between two entries."""
_ENTRY = struct.Struct("<dQ")
_MOST = 1 << 20
"""Bytes of the file: eighteen hours of output without a pause."""


class LogTimes:
    """Writes the entries of one log. Most jobs are short, so the file is made with the second entry.

    Args:
        log: descriptor of the log. Only a log in `LOGS_DIRECTORY` gets the file.
        most: bytes of the file, at most.
    """

    def __init__(self, log: int, most: int = _MOST) -> None:
        path = os.readlink(f"/proc/self/fd/{log}")
        ours = os.path.basename(os.path.dirname(path)) == LOGS_DIRECTORY and not path.endswith(" (deleted)")
        self._path = path + TIMES if ours else None
        self._most = most
        self._unwritten = b""
        self._last = float("-inf")
        self._begun = False

    def note(self, position: int) -> None:
        """Say that the bytes at a position and after it come now."""
        now = time.time()
        if self._path is None or 0 <= now - self._last < STEP:
            return
        self._last = now
        self._unwritten += _ENTRY.pack(now, position)
        if self._begun:
            with contextlib.suppress(OSError):  # The times are of little use where the disk is full: the log goes on.
                self._write(self._path)
            self._unwritten = b""
        self._begun = True

    def _write(self, path: str) -> None:
        """Append what is unwritten. No descriptor is kept: a machine may have thousands of logs."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            size -= size % _ENTRY.size  # A full disk may have cut an entry.
            if size >= self._most:
                kept = os.pread(fd, size, size // 2 // _ENTRY.size * _ENTRY.size)
                size = os.pwrite(fd, kept, 0)
                os.ftruncate(fd, size)
            os.pwrite(fd, self._unwritten, size)
        finally:
            os.close(fd)


def entries(fd: int) -> list[tuple[float, int]]:
    """Return the entries of an open file: times in seconds since 1970, and positions in the log's file."""
    data = os.pread(fd, 2 * _MOST, 0)
    return list(_ENTRY.iter_unpack(data[: len(data) - len(data) % _ENTRY.size]))


def position_since(found: list[tuple[float, int]], moment: float, base: int) -> int | None:
    """Return a position after which all bytes of this moment and later are, at most `STEP` before the first of them.

    Args:
        found: the entries, at least one.
        moment: seconds since 1970.
        base: position of the log's file, which was emptied where file systems have no holes; 0 elsewhere.

    Returns:
        The position, 0 if the moment is before all that is known; None if nothing came then or later.
    """
    if moment < found[0][0]:
        return 0
    emptied = [number for number, (before, after) in enumerate(pairwise(found), 1) if after[1] < before[1]]
    fresh = (emptied[-1] if emptied else len(found)) if base else 0
    for number, (at, position) in enumerate(found):
        if at + STEP > moment:
            return base + position if number >= fresh else 0
    return None
