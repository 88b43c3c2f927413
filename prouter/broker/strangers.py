"""Connections to the agents' port whose peers were not accepted: they have a short while to change that.

ZeroMQ ends connections that do not speak its protocol, but has no call to close one that does. So the socket under it
is shut down, which ZeroMQ notices like any other end.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import OrderedDict

__all__ = ["Strangers"]

log = logging.getLogger("prouter.broker")

_PATIENCE = 10.0
"""Seconds a connection may take until its peer is accepted; one that was refused waits longer before it comes again."""
_MOST = 4096
"""Connections that may be without a peer at once; the oldest have to go."""

_AT_ONCE = 50
"""Connections ended at once."""


class Strangers:
    """See the module's docstring. Connections are known by their descriptors.

    Attributes:
        cut: how many were ended.
    """

    def __init__(self) -> None:
        self.cut = 0
        self._since: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def opened(self, fd: int, now: float) -> None:
        """A connection was taken."""
        self._since.pop(fd, None)
        self._since[fd] = now

    def gone(self, fd: int) -> None:
        """A connection was closed, or its peer accepted."""
        self._since.pop(fd, None)

    def due(self, now: float) -> bool:
        """Whether `sweep` has something to do."""
        oldest = next(iter(self._since.values()), now)
        return now - oldest > _PATIENCE or len(self._since) > _MOST

    def sweep(self, now: float) -> None:
        """End some of the connections that have had their time; to be called with all news of closed ones heard."""
        for _ in range(_AT_ONCE):
            if not self.due(now):
                break
            fd, _since = self._since.popitem(last=False)
            self.cut += 1
            _shut_down(fd)


def _shut_down(fd: int) -> None:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("event=stranger_gone error=%r", error)
