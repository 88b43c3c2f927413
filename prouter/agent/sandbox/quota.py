"""A sandbox's quota: the space that its size limit leaves, shared by all transfers into it.

Measuring a sandbox walks over all of it. So it is measured now and then. In between, every transfer takes the bytes
that it is about to write from one common account. So simultaneous transfers never get the same space twice, and ten
thousand small uploads do not each walk over the earlier ones. The account counts whole blocks of the disk, so that a
million files of one byte count as what they take.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from typing import final

from prouter.errors import NoSpace

__all__ = ["DIRECTORY", "Claim", "Quota", "blocks", "freed_by_replacing"]

_BLOCK = 4096
DIRECTORY = _BLOCK
"""Bytes on disk of an empty directory."""
_TRUSTED = 1.0  # seconds for which a measurement holds, because the job itself writes, too
_PACE = 20  # measuring takes at most a twentieth of the time


def blocks(size: int) -> int:
    """Return the bytes on disk of a file of this size."""
    return -(-size // _BLOCK) * _BLOCK


def freed_by_replacing(name: bytes, parent: int) -> int:
    """Return the bytes on disk that are freed when another file replaces `name` in `parent`; 0 if it has more names."""
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return 0  # nothing is replaced
    return info.st_blocks * 512 if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 else 0


@final
class Quota:
    """The account of one sandbox. Safe to use from several threads at once.

    Args:
        measure: returns the sandbox's bytes on disk; may take long.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self._lock = threading.Lock()
        self._used = 0
        self._news = 0  # bytes ever taken or given a name, which a concurrent walk may miss
        self._unseen = 0  # part of `_used` in nameless files, which no walk finds
        self._valid_until = 0.0

    def take(self, amount: int, limit: int, *, unseen: bool) -> None:
        """Take `amount` bytes if `limit` allows; measures first if that may change the outcome.

        Args:
            unseen: whether they go into a nameless file.

        Raises:
            NoSpace: the sandbox would exceed its limit; nothing is taken.
        """
        with self._lock:
            if time.monotonic() < self._valid_until and self._used + amount <= limit:
                self._book(amount, unseen)
                return
            before = self._news
        began = time.monotonic()
        size = self._measure()
        now = time.monotonic()
        with self._lock:
            self._used = size + self._unseen + self._news - before
            self._valid_until = now + max(_TRUSTED, (now - began) * _PACE)
            if self._used + amount > limit:
                raise NoSpace(f"the sandbox would be over its size limit of {limit} bytes; {self._used} are in use")
            self._book(amount, unseen)

    def _book(self, amount: int, unseen: bool) -> None:
        self._used += amount
        self._news += amount
        if unseen:
            self._unseen += amount

    def appeared(self, amount: int) -> None:
        """Note that bytes taken as unseen are now in a file with a name, or deleted."""
        with self._lock:
            self._unseen -= amount
            self._news += amount

    def freed(self, amount: int) -> None:
        """Return bytes to the quota."""
        with self._lock:
            self._used -= amount


@final
class Claim:
    """One transfer's share of a sandbox's quota.

    Args:
        limit: bytes the sandbox may hold.
        unseen: whether the bytes go into a nameless file until `settle`.
    """

    def __init__(self, quota: Quota, limit: int, *, unseen: bool = False) -> None:
        self.limit = limit
        self._quota = quota
        self._unseen = unseen
        self._spare = 0
        self._held = 0

    def allow(self, spare: int) -> None:
        """Allow `spare` bytes beyond the limit, because this file will replace one of that size."""
        self._spare = spare

    def cover(self, size: int) -> None:
        """Claim enough for a file of `size` bytes in all.

        Raises:
            NoSpace: the quota does not suffice; the previous claim stays.
        """
        missing = blocks(size) - self._held
        if missing > 0:
            self._quota.take(missing, self.limit + self._spare, unseen=self._unseen)
            self._held += missing

    def settle(self, freed: int = 0) -> None:
        """Count the claimed bytes as used, less `freed` bytes of a replaced file, and start a new claim."""
        self._end(freed)

    def release(self) -> None:
        """Return the claimed bytes, because the file is deleted, and start a new claim."""
        self._end(self._held)

    def _end(self, freed: int) -> None:
        if self._unseen and self._held:
            self._quota.appeared(self._held)
        if freed:
            self._quota.freed(freed)
        self._held = self._spare = 0
