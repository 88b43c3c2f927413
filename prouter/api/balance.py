"""Fair shares of connections among workers that accept from the same sockets.

Left to the kernel, whichever worker wakes first takes a connection, and one may end up with nearly all. So each tells
its number of connections in memory that all share, and one that has clearly more than another steps back for a moment.
"""

from __future__ import annotations

import mmap
import struct

__all__ = ["Balance"]

_SLOTS = 256
_SLOT = struct.Struct("<di")
"""Monotonic time of the last beat, and the number of connections."""
_FRESH = 3.0
"""Seconds after its last beat that a worker still counts."""
_LEAD = 3
"""Connections that a worker may have more than another before it steps back."""
_PATIENCE = 3
"""Times in a row that it steps back; then the others are busy, and it takes the connection after all."""

_shared = mmap.mmap(-1, _SLOTS * _SLOT.size)
"""Made when gunicorn's parent process imports this module, and inherited by all workers."""


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
        _SLOT.pack_into(_shared, self._own * _SLOT.size, now, connections)

    def leave(self) -> None:
        """This worker accepts no more."""
        self.beat(0.0, 0)

    def step_back(self, now: float, connections: int) -> bool:
        """Whether to leave the connection that waits to a worker with fewer."""
        self.beat(now, connections)
        if connections >= _LEAD and self._stepped_back < _PATIENCE:
            for beat, others in _SLOT.iter_unpack(_shared[:]):
                if now - beat < _FRESH and connections - others >= _LEAD:
                    self._stepped_back += 1
                    return True
        self._stepped_back = 0
        return False
