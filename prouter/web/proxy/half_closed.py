"""A client that has ended its sending side: has it gone, or does it wait for the rest of its answers?

Both look the same on the wire, a FIN. They differ in what comes back for bytes that are sent to it: from a client that
has gone a reset, from one that waits nothing. So an answer that begins soon is sent; without one the client counts as
gone, because a job must not work for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent import monkey

__all__ = ["HalfClosed"]

_TICK = 0.4
"""Seconds between looks; also those in which an answer has to begin."""
_poll = monkey.get_original("select", "poll")


class HalfClosed:
    """Watches a connection whose client has ended its sending side.

    Args:
        loop: gevent's.
        fd: the connection's descriptor.
        gone: called, at most once, when the client is gone.

    Attributes:
        answered: to be set when something was sent since: without a reset the client is there.
    """

    __slots__ = ("_fd", "_gone", "_timer", "answered")

    def __init__(self, loop: Any, fd: int, gone: Callable[[], None]) -> None:
        self.answered = False
        self._fd = fd
        self._gone = gone
        self._timer = loop.timer(_TICK, _TICK)
        self._timer.start(self._look)

    def stop(self) -> None:
        """Watch no more. Idempotent."""
        self._timer.stop()
        self._timer.close()

    def _look(self) -> None:
        poll = _poll()
        poll.register(self._fd, 0)
        if not self.answered or poll.poll(0):
            self._gone()
