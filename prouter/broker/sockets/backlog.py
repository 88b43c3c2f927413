"""What waits to be sent to one peer: how much of it is whose, and who may add to it.

Streams' windows bound what honest peers have under way, but their number is not bounded, and not every peer is honest.
When a peer takes less than others send it, whoever has more than its share of what waits gets nothing more through:
those messages are dropped, and once there is room again their streams resume (see `Switch.lossy`).

Who has how much is known roughly: what was accepted is counted by source in two generations, of which the older one is
forgotten once all of it must have left.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Backlog"]

SMALL = 1024 * 1024
"""Bytes that may wait without anybody asking whose they are."""
SHARE = 4 * 1024 * 1024
"""Bytes that everybody may have waiting."""
MOST_OF_ONE = 64 * 1024 * 1024
"""Bytes that one may have waiting while there is room."""
MOST = 128 * 1024 * 1024
"""Bytes that may wait; beyond, only those get through who have less than their share."""


class Backlog:
    """See the module's docstring. `taken` and `sent` are the totals of the peer's `Wire`."""

    __slots__ = ("_before", "_counted", "_now", "_turn")

    def __init__(self) -> None:
        self._now: Counter[bytes] = Counter()
        self._before: Counter[bytes] = Counter()
        self._turn = 0
        """What had been taken when the younger generation began: the older one has left when this was sent."""
        self._counted = 0
        """What had been taken after the last message that was counted."""

    def admit(self, source: bytes, size: int, taken: int, sent: int) -> bool:
        """Whether a message of `source` may be added. To be asked while more than `SMALL` waits."""
        if sent >= self._counted:
            self._now.clear()
            self._before.clear()
            self._turn = taken
        elif sent >= self._turn:
            self._before, self._now = self._now, Counter()
            self._turn = taken
        own = self._now[source] + self._before[source]
        if own >= SHARE and (own >= MOST_OF_ONE or taken - sent >= MOST):
            return False
        self._now[source] += size
        self._counted = taken + size
        return True
