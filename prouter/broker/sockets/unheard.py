"""Ports with messages that have arrived and were not moved yet.

Their descriptors may not become ready, because the bytes were read already. So the event loop goes on with them in each
of its iterations: with all workers, and with agents in turns, for a few milliseconds and with as many as the poller
hears at most. However many agents send without pause, workers wait no longer than that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prouter.broker.sockets.port import Port

__all__ = ["AGENTS_AT_ONCE", "Unheard"]

AGENTS_AT_ONCE = 32
"""Agents that are heard in one event loop iteration."""
_BUDGET = 0.004
"""Seconds of an iteration after which no other agent's turn begins. One turn takes up to half a millisecond."""


class Unheard:
    """The ports, of each kind who has waited longest first."""

    __slots__ = ("_agents", "_workers")

    def __init__(self) -> None:
        self._agents: dict[Port, None] = {}
        self._workers: dict[Port, None] = {}

    def __bool__(self) -> bool:
        return bool(self._agents or self._workers)

    def add(self, port: Port) -> None:
        """There is more of a port. One that waits already keeps its place."""
        port.unheard = True
        (self._workers if port.worker else self._agents)[port] = None

    def discard(self, port: Port) -> None:
        """There is nothing more of a port, or it is closed or not to be read."""
        port.unheard = False
        (self._workers if port.worker else self._agents).pop(port, None)

    def turns(self) -> Iterator[Port]:
        """Remove and return the ports whose turn it is. If there is still more of one, it has to be added again."""
        until = time.monotonic() + _BUDGET
        workers, self._workers = self._workers, {}
        for port in workers:
            if port.unheard:  # It may have been closed since.
                port.unheard = False
                yield port
        for _ in range(min(AGENTS_AT_ONCE, len(self._agents))):
            if not self._agents:
                return
            port = next(iter(self._agents))
            self.discard(port)
            yield port
            if time.monotonic() > until:
                return
