"""Which connections a worker gives up when it has as many as it may have.

First those without a request in progress, then those whose client keeps a request from going on: one that sends no more
of the request for `GRACE` seconds, or reads no more of the response for `PAUSE` seconds. A client that moves less than
a KiB in that time counts as standing still, so that a byte a second does not keep a connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from heapq import nsmallest
from operator import attrgetter

from prouter.web.proxy.connection import ClientConnection

__all__ = ["evict"]

GRACE = 0.5
"""Seconds a connection may be idle or stand still however many connections there are."""
PAUSE = 5.0
"""Seconds a client may pause within a response: a player that has buffered enough, or a busy client, reads on later."""
_IDLE_AT_ONCE = 64
"""Idle connections closed at once, so that the next accepts need not search again."""
_STUCK_AT_ONCE = 16


def evict(connections: Iterable[ClientConnection]) -> None:
    """Close the connections that have been idle, slow with a request head, or stuck for longest."""
    now = time.monotonic()
    latest = now - GRACE
    idle = [one for one in connections if one.exchange is None and one.idle_since < latest]
    if idle:
        for connection in nsmallest(_IDLE_AT_ONCE, idle, key=attrgetter("idle_since")):
            connection.close()
        return
    stuck = [one for one in connections if one.stuck and one.moved_at < now - (PAUSE if one.out_size else GRACE)]
    for connection in nsmallest(_STUCK_AT_ONCE, stuck, key=attrgetter("moved_at")):
        connection.evict()
