"""Figures that a worker process publishes about itself for ``/metrics``."""

from __future__ import annotations

import gc
import os
import resource
from typing import TYPE_CHECKING

from greenlet import greenlet

from prouter.web.metrics.counters import Board

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["publish"]


def publish(board: Board, router: RouterClient, connections: int | None = None) -> None:
    """Put this worker's figures on the board. Greenlets take milliseconds to count, so only on demand.

    Args:
        connections: number of clients' connections; None keeps the last one.
    """
    gauges: dict[str, float] = {
        **router.stats(),
        "bridges": len(router.list_bridges()),
        "resident_memory_bytes": _resident_memory(),
    }
    if connections is not None:
        gauges["connections"] = connections
    if board.wanted:
        gauges["greenlets"] = _greenlets()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    board.publish(gauges, usage.ru_utime + usage.ru_stime)


def _resident_memory() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _greenlets() -> int:
    """Return the number of live greenlets, without those that existed before ``gc.freeze``."""
    return sum(issubclass(type(thing), greenlet) and not thing.dead for thing in gc.get_objects())
