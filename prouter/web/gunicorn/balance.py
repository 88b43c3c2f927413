"""Memory that all workers and their parent share: who has how many connections, and who is to be replaced.

Left to the kernel, the worker that wakes first takes a connection, and one may end up with nearly all. So each worker
publishes its number of connections, and one that has clearly more than another pauses accepting for a moment. From the
same memory the parent knows which workers serve (`prouter.web.gunicorn.roster`).
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum

__all__ = ["Balance", "Standing", "enter", "replace", "serves", "standing"]

_SLOTS = 256
_BEAT = struct.Struct("<di")
"""Monotonic time of a worker's last heartbeat, and its number of connections."""
_TIME = struct.Struct("<d")
_STANDING = struct.Struct("<i")
_SLOT = struct.Struct("<dii")
"""A heartbeat, then a `Standing`."""
_FRESH = 3.0
"""Seconds after its last heartbeat that a worker counts as serving."""
_LEAD = 3
"""Connections that a worker may have more than another before it pauses."""
_PATIENCE = 3
"""Pauses in a row; after these the others are busy, and the worker accepts."""

_shared = mmap.mmap(-1, _SLOTS * _SLOT.size)
"""Made when gunicorn's parent process imports this module, and inherited by all workers."""


class Standing(IntEnum):
    """Whether a worker stays. The order counts: from REPLACED on it does not."""

    STAYS = 0
    DUE = 1
    """It has reached ``max_requests`` and serves until its successor does."""
    REPLACED = 2
    """Its successor serves: it finishes its requests without hurry."""
    LEAVING = 3
    """It accepts no more."""


def enter(number: int) -> None:
    """Reset the slot of a worker that is about to start."""
    _SLOT.pack_into(_shared, number % _SLOTS * _SLOT.size, 0.0, 0, Standing.STAYS)


def replace(number: int) -> None:
    """Mark a worker whose successor serves."""
    _set_standing(number, Standing.REPLACED)


def standing(number: int) -> Standing:
    """Return whether a worker stays."""
    return Standing(_STANDING.unpack_from(_shared, number % _SLOTS * _SLOT.size + _BEAT.size)[0])


def serves(number: int, now: float) -> bool:
    """Return whether a worker accepts connections at the monotonic time `now`."""
    (beat,) = _TIME.unpack_from(_shared, number % _SLOTS * _SLOT.size)
    return bool(now - beat < _FRESH)


def _set_standing(number: int, value: Standing) -> None:
    _STANDING.pack_into(_shared, number % _SLOTS * _SLOT.size + _BEAT.size, value)


class Balance:
    """One worker's use of the shared memory.

    Args:
        number: tells this worker from others of the same parent.
    """

    def __init__(self, number: int) -> None:
        self._own = number % _SLOTS
        self._pauses = 0

    def beat(self, now: float, connections: int) -> None:
        """Publish that this worker serves, and how many connections it has."""
        _BEAT.pack_into(_shared, self._own * _SLOT.size, now, connections)

    def ask_for_successor(self) -> None:
        """Have the parent start a worker that replaces this one."""
        if standing(self._own) is Standing.STAYS:
            _set_standing(self._own, Standing.DUE)

    def leave(self) -> None:
        """Publish that this worker accepts no more."""
        self.beat(0.0, 0)
        _set_standing(self._own, Standing.LEAVING)

    def step_back(self, now: float, connections: int) -> bool:
        """Return whether to leave the next connection to a worker with fewer."""
        self.beat(now, connections)
        if connections >= _LEAD and self._pauses < _PATIENCE:
            for beat, others, _standing in _SLOT.iter_unpack(_shared[:]):
                if now - beat < _FRESH and connections - others >= _LEAD:
                    self._pauses += 1
                    return True
        self._pauses = 0
        return False
