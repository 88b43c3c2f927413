"""Connections to the agents' port whose peers were not accepted: they have a short while to change that."""

from __future__ import annotations

from collections import OrderedDict

from prouter.broker.sockets.ports import Port

__all__ = ["Strangers"]

_PATIENCE = 10.0
"""Seconds a connection may take until its peer is accepted; one that was refused waits longer before it comes again."""
_MOST = 4096
"""Connections that may be without a peer at once; the oldest have to go."""
_AT_ONCE = 200
"""Connections ended at once; more than are taken at once."""


class Strangers:
    """See the module's docstring.

    Attributes:
        cut: how many had to be ended.
    """

    def __init__(self) -> None:
        self.cut = 0
        self._since: OrderedDict[Port, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def opened(self, port: Port, now: float) -> None:
        """A connection was taken."""
        self._since[port] = now

    def gone(self, port: Port) -> None:
        """A connection was closed, or its peer accepted."""
        self._since.pop(port, None)

    def due(self, now: float) -> bool:
        """Whether some have had their time."""
        oldest = next(iter(self._since.values()), now)
        return now - oldest > _PATIENCE or len(self._since) > _MOST

    def take_due(self, now: float) -> list[Port]:
        """Some of those that have had their time: end them."""
        found: list[Port] = []
        while len(found) < _AT_ONCE and self.due(now):
            found.append(self._since.popitem(last=False)[0])
        self.cut += len(found)
        return found
