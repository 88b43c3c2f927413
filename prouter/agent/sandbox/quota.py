"""What a sandbox may still take under its size limit, shared by all the transfers into it.

Measuring a sandbox is a walk over all of it. So it is measured now and then, and in between every transfer takes what
it is about to write from one common account: neither do many transfers at once get the same room, nor does each of
ten thousand small uploads walk over the ten thousand before it. Counted is what the disk gives: whole blocks, so that
a million files of one byte are what they are.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from typing import final

from prouter.errors import NoSpace

__all__ = ["DIRECTORY", "Claim", "Room", "blocks", "freed_by_replacing"]

_BLOCK = 4096
DIRECTORY = _BLOCK
"""Bytes an empty directory takes."""
_TRUSTED = 1.0  # seconds a measurement counts, for what the job itself writes meanwhile
_PACE = 20  # a sandbox is walked over for at most a twentieth of the time


def blocks(size: int) -> int:
    """Bytes on disk of a file with so many bytes."""
    return -(-size // _BLOCK) * _BLOCK


def freed_by_replacing(name: bytes, parent: int) -> int:
    """Bytes on disk that go when `name` in the directory `parent` goes to another file; none if it has more names."""
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return 0  # there is nothing
    return info.st_blocks * 512 if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 else 0


@final
class Room:
    """The account of one sandbox. Safe to use from several threads at once.

    Args:
        measure: the bytes on disk of what is in the sandbox; may take long.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self._lock = threading.Lock()
        self._used = 0
        self._news = 0  # bytes ever taken or given a name: a walk that goes on meanwhile may miss them
        self._unseen = 0  # of `_used`, in files without a name, which no walk finds
        self._valid_until = 0.0

    def take(self, amount: int, limit: int, *, unseen: bool) -> None:
        """Take `amount` bytes, if `limit` allows for them; measures first when that may change the answer.

        Args:
            unseen: they go into a file that has no name yet.

        Raises:
            NoSpace: they would put the sandbox over its limit; nothing is taken.
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
        """Bytes taken as unseen are in a file with a name now, or gone."""
        with self._lock:
            self._unseen -= amount
            self._news += amount

    def freed(self, amount: int) -> None:
        """So many bytes are in use no more."""
        with self._lock:
            self._used -= amount


@final
class Claim:
    """What one transfer takes of a sandbox's room.

    Args:
        limit: bytes the sandbox may hold.
        unseen: whether the bytes go into a file without a name until `settle`.
    """

    def __init__(self, room: Room, limit: int, *, unseen: bool = False) -> None:
        self.limit = limit
        self._room = room
        self._unseen = unseen
        self._spare = 0
        self._held = 0

    def allow(self, spare: int) -> None:
        """Let the limit be passed by `spare` bytes: a file of that size will go once this one has its name."""
        self._spare = spare

    def cover(self, size: int) -> None:
        """Hold enough for a file of `size` bytes, all of which this claim is for.

        Raises:
            NoSpace: that is too much; what was held before is kept.
        """
        missing = blocks(size) - self._held
        if missing > 0:
            self._room.take(missing, self.limit + self._spare, unseen=self._unseen)
            self._held += missing

    def settle(self, freed: int = 0) -> None:
        """The file has its name, in place of one with `freed` bytes: what is held stays in use. Begin anew."""
        self._end(freed)

    def release(self) -> None:
        """The file is gone: give back what is held. Begin anew."""
        self._end(self._held)

    def _end(self, freed: int) -> None:
        if self._unseen and self._held:
            self._room.appeared(self._held)
        if freed:
            self._room.freed(freed)
        self._held = self._spare = 0
