"""Which clients' connections are given up when a worker has as many as it may have.

First those without a request in progress, then those whose client keeps a request from going on: it sends no more of
the request for `SAFE` seconds, or takes no more of the answer for `PAUSE` seconds. A client that moves less than a KiB
meanwhile counts as standing still, so that a byte a second keeps no place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prouter.web.proxy.connection import ClientConnection

__all__ = ["make_room"]

SAFE = 0.5
"""Seconds a connection may be idle, or stand still, in peace, however many there are."""
PAUSE = 5.0
"""Seconds a client may pause within an answer: a player that has buffered enough, or a busy client, reads on later."""
_IDLE_AT_ONCE = 64
_STUCK_AT_ONCE = 16


def make_room(connections: Iterable[ClientConnection]) -> None:
    """Close some connections: those that have been idle, slow with a request's head, or stuck, for longest."""
    now = time.monotonic()
    latest = now - SAFE
    idle = [one for one in connections if one.exchange is None and one.idle_since < latest]
    if idle:
        for connection in nsmallest(_IDLE_AT_ONCE, idle, key=attrgetter("idle_since")):
            connection.close()
        return
    stuck = [one for one in connections if one.stuck and one.moved_at < now - (PAUSE if one.out_size else SAFE)]
    for connection in nsmallest(_STUCK_AT_ONCE, stuck, key=attrgetter("moved_at")):
        connection.give_up()
