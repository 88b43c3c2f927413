"""A number in a file that one process raises and others read, without a message between them.

The writer raises it before it tells anybody of what has changed. So a reader that finds the number it knows knows
everything that anybody has been told. That holds from one writer to the next, which raises the number of the same file
before it does anything else. A file that was deleted or replaced says nothing to those who have it open.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from pathlib import Path

__all__ = ["UNKNOWN", "VersionFile", "VersionReader"]

log = logging.getLogger("prouter.process")

UNKNOWN = 0
"""No version: who has it may trust nothing that it knows."""
_NUMBER = struct.Struct("=Q")
_SIZE = _NUMBER.size
"""Bytes of the file; aligned as they are, readers see them change at once."""


class VersionFile:
    """The writer's side; there is one at a time. Making it raises the version.

    It writes with pwrite(2), because a store to mapped memory that the disk has no space for would end the process.

    Args:
        path: the file, in a directory that is private.

    Attributes:
        version: the current one; `UNKNOWN` once the file could not be written, which is deleted then.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        data = os.pread(self._fd, _SIZE + 1, 0)
        # A new file begins where no earlier one has been, in case that somebody still has an earlier one open.
        self.version = _NUMBER.unpack(data)[0] if len(data) == _SIZE else time.time_ns()
        if len(data) != _SIZE:
            os.ftruncate(self._fd, 0)
        self.increment()

    def increment(self) -> int:
        """Raise the version and return it."""
        if self._fd < 0:
            return UNKNOWN
        self.version += 1
        try:
            os.pwrite(self._fd, _NUMBER.pack(self.version), 0)
        except OSError as error:
            log.error("event=version_not_written path=%s error=%r", self._path, error.strerror)
            self._path.unlink(missing_ok=True)
            self.version = UNKNOWN
            self.close()
        return self.version

    def close(self) -> None:
        """Close the file, which stays for the next writer. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class VersionReader:
    """A reader's side.

    Args:
        path: the writer's file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._number: memoryview | None = None

    def reopen(self) -> None:
        """Read the file that is at the path now; to be called when the version is `UNKNOWN`."""
        self.close()
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._number = memoryview(mmap.mmap(self._fd, _SIZE, prot=mmap.PROT_READ)).cast("Q")
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            log.debug("event=version_not_read path=%s error=%r", self._path, str(error))
            self.close()

    def current(self) -> int:
        """Return the version; `UNKNOWN` without a file, or if the file is no longer at its path."""
        if self._number is None:
            return UNKNOWN
        status = os.fstat(self._fd)
        if not status.st_nlink or status.st_size != _SIZE:
            return UNKNOWN
        return self._number[0]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._number = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
