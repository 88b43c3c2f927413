"""An agent's end of a runner's reports that keeps them, and waits for them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import gevent

from prouter.errors import InvalidRequest
from prouter.runners import Exit, Queued, Reports, Spawned

__all__ = ["RecordedReports", "until"]

T = TypeVar("T")

_POLL = 0.005


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait for a condition and return its value; other greenlets run meanwhile.

    Raises:
        AssertionError: it did not come true in time; the text says what was awaited.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        gevent.sleep(_POLL)
    return value


class RecordedReports(Reports):
    """All reports, by job and in order.

    Attributes:
        order: for each job the names of its reports: ``queued``, ``running``, ``exited``.
        refused_ports: ports whose reports it refuses.
    """

    def __init__(self) -> None:
        self.order: dict[str, list[str]] = defaultdict(list)
        self.waits: dict[str, Queued] = {}
        self.starts: dict[str, Spawned] = {}
        self.ends: dict[str, Exit] = {}
        self.ports: dict[str, list[int]] = defaultdict(list)
        self.refused_ports: set[int] = set()

    def queued(self, queued: Queued) -> None:
        """See `Reports.queued`."""
        self.order[queued.job].append("queued")
        self.waits[queued.job] = queued

    def running(self, spawned: Spawned) -> None:
        """See `Reports.running`."""
        self.order[spawned.job].append("running")
        self.starts[spawned.job] = spawned

    def exited(self, end: Exit) -> None:
        """See `Reports.exited`."""
        self.order[end.job].append("exited")
        self.ends[end.job] = end

    def port(self, job: str, port: int) -> None:
        """See `Reports.port`."""
        if port in self.refused_ports:
            raise InvalidRequest(f"port {port} is another program's")
        self.ports[job].append(port)
