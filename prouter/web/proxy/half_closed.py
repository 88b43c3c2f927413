"""Tells a client that disconnected from one that only shut down its sending side.

Both send the same, a FIN. They differ in what comes back for bytes that are sent to them: a reset from a client that
has closed, nothing from one that still reads. So a response that begins soon is sent; without one the client counts as
disconnected, because a job must not work for nobody.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from gevent import monkey

__all__ = ["HalfClosed", "has_closed"]

_INTERVAL = 0.4
"""Seconds between looks, and within which a response has to begin."""
_poll = monkey.get_original("select", "poll")


class HalfClosed:
    """A watch over the connection of a client that has shut down its sending side.

    Args:
        loop: gevent's event loop.
        fd: the connection's descriptor.
        disconnected: called, at most once, when the client turns out to have disconnected.

    Attributes:
        responded: whether bytes were sent since the FIN; set by the owner. If no reset follows, the client is there.
    """

    __slots__ = ("_disconnected", "_fd", "_timer", "responded")

    def __init__(self, loop: Any, fd: int, disconnected: Callable[[], None]) -> None:
        self.responded = False
        self._fd = fd
        self._disconnected = disconnected
        self._timer = loop.timer(_INTERVAL, _INTERVAL)
        self._timer.start(self._look)

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        self._timer.stop()
        self._timer.close()

    def _look(self) -> None:
        if not self.responded or has_closed(self._fd, both_sides=True):
            self._disconnected()


def has_closed(fd: int, *, both_sides: bool) -> bool:
    """Whether the peer of a connection has closed it, as the kernel knows it even behind unread bytes.

    Args:
        both_sides: whether both of its sides have to be closed: a FIN alone does not count.
    """
    poll = _poll()
    poll.register(fd, 0 if both_sides else select.POLLRDHUP)  # poll() reports errors and hang-ups unasked
    return bool(poll.poll(0))
