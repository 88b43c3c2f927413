"""What workers that accept from the same sockets tell each other and their parent: shares, and who leaves.

Left to the kernel, whichever worker wakes first takes a connection, and one may end up with nearly all. So each tells
its number of connections in memory that all share, and one that has clearly more than another steps back for a moment.
The same memory tells the parent which workers serve (`prouter.web.gunicorn.roster`).
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum

__all__ = ["Balance", "Standing", "dismiss", "enter", "serves", "standing"]

_SLOTS = 256
_BEAT = struct.Struct("<di")
"""Monotonic time of the last beat, and the number of connections."""
_TIME = struct.Struct("<d")
_STANDING = struct.Struct("<i")
_SLOT = struct.Struct("<dii")
"""Both together."""
_FRESH = 3.0
"""Seconds after its last beat that a worker still counts."""
_LEAD = 3
"""Connections that a worker may have more than another before it steps back."""
_PATIENCE = 3
"""Times in a row that it steps back; then the others are busy, and it takes the connection after all."""

_shared = mmap.mmap(-1, _SLOTS * _SLOT.size)
"""Made when gunicorn's parent process imports this module, and inherited by all workers."""


class Standing(IntEnum):
    """What is to become of a worker."""

    STAYS = 0
    WORN = 1
    """It has served enough and serves on until somebody takes its place."""
    DISMISSED = 2
    """Somebody has taken its place: it finishes what it has, in peace."""
    LEAVES = 3
    """It accepts no more."""


def enter(number: int) -> None:
    """A worker of this number is about to start."""
    _SLOT.pack_into(_shared, number % _SLOTS * _SLOT.size, 0.0, 0, Standing.STAYS)


def dismiss(number: int) -> None:
    """Somebody has taken this worker's place."""
    _set_standing(number, Standing.DISMISSED)


def standing(number: int) -> Standing:
    """What is to become of this worker."""
    return Standing(_STANDING.unpack_from(_shared, number % _SLOTS * _SLOT.size + _BEAT.size)[0])


def serves(number: int, now: float) -> bool:
    """Whether this worker accepts connections at the moment."""
    (beat,) = _TIME.unpack_from(_shared, number % _SLOTS * _SLOT.size)
    return bool(now - beat < _FRESH)


def _set_standing(number: int, value: Standing) -> None:
    _STANDING.pack_into(_shared, number % _SLOTS * _SLOT.size + _BEAT.size, value)


class Balance:
    """One worker's view.

    Args:
        number: tells this worker from others of the same parent.
    """

    def __init__(self, number: int) -> None:
        self._own = number % _SLOTS
        self._stepped_back = 0

    def beat(self, now: float, connections: int) -> None:
        """Tell that this worker accepts, and how many connections it has."""
        _BEAT.pack_into(_shared, self._own * _SLOT.size, now, connections)

    def wear_out(self) -> None:
        """This worker has served enough: somebody is to take its place."""
        if standing(self._own) is Standing.STAYS:
            _set_standing(self._own, Standing.WORN)

    def leave(self) -> None:
        """This worker accepts no more."""
        self.beat(0.0, 0)
        _set_standing(self._own, Standing.LEAVES)

    def step_back(self, now: float, connections: int) -> bool:
        """Whether to leave the connection that waits to a worker with fewer."""
        self.beat(now, connections)
        if connections >= _LEAD and self._stepped_back < _PATIENCE:
            for beat, others, _standing in _SLOT.iter_unpack(_shared[:]):
                if now - beat < _FRESH and connections - others >= _LEAD:
                    self._stepped_back += 1
                    return True
        self._stepped_back = 0
        return False
