"""What workers say, and what follows when a worker links or ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Worker
from prouter.broker.service import Service
from prouter.broker.views.bridges import Bridges
from prouter.broker.views.broadcast import Broadcast
from prouter.broker.views.bulk import BulkCounts
from prouter.errors import ProtocolError, PRouterError
from prouter.fabric.calls import Request, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, Frame

__all__ = ["WorkerSessions"]

log = logging.getLogger("prouter.broker")

_LINKS = 200
"""Links in one message to a worker."""


class WorkerSessions:
    """The broker's side of its sessions with workers; the `WorkerListener` of the broker.

    Args:
        flooded: called with the connection uid of an agent that floods a worker, and the time.
        started: when this broker started (monotonic seconds).

    Attributes:
        draining: whether workers that link are told that the router winds down.
    """

    def __init__(
        self,
        env: Env,
        links: Links,
        service: Service,
        bridges: Bridges,
        bulk: BulkCounts,
        broadcast: Broadcast,
        *,
        flooded: Callable[[str, float], None],
        started: float,
    ) -> None:
        self.draining = False
        self._env = env
        self._links = links
        self._service = service
        self._bridges = bridges
        self._bulk = bulk
        self._broadcast = broadcast
        self._flooded = flooded
        self._started = started

    def receive(self, worker: Worker, frame: Frame, now: float) -> None:
        """Handle a call or an event of a worker.

        Raises:
            ProtocolError: it is malformed.
        """
        if frame.type == CALL:
            todo = worker.responder.receive(frame)
            if isinstance(todo, Request):
                self._carry_out(worker, todo, now)
            elif todo is not None and worker.path is not None:
                self._env.outbox.say(worker.path, todo)
        elif frame.type == EVENT:
            self._event(worker, *read_event(frame), now)
        else:
            raise ProtocolError(f"unexpected frame type {frame.type} from a worker")

    def _event(self, worker: Worker, name: str, body: dict[str, Any], now: float) -> None:
        if name == "waits":
            self._service.keep_waits(worker, _texts(body.get("ids")))
        elif name == "wait.cancel":
            self._service.cancel_wait(worker, str(body.get("id")))
        elif name == "bridges":
            self._bridges.told(worker, body)
        elif name == "bulk":
            self._bulk.told(worker, body)
        elif name == "strays":
            self._flooded(str(body.get("connection")), now)

    def _carry_out(self, worker: Worker, request: Request, now: float) -> None:
        try:
            self._service.call(worker, request, now)
        except Exception:  # A fault in one call must not end the broker.
            log.exception("event=call_failed op=%s worker=%s", request.op, worker.uid)
            self._service.failed(worker, request, PRouterError(f"{request.op} failed"), now)

    def worker_greeting(self) -> dict[str, Any]:
        """The body of a worker's WELCOME."""
        settings = self._env.settings
        return {
            "router": {**settings.auth, "platform": settings.platform, "agents_port": self._env.agents_port},
            "incarnation": self._env.incarnation,
            "draining": self.draining,
        }

    def worker_up(self, worker: Worker, now: float) -> None:
        """Tell a worker all links, in parts because there may be many, and have agents resume their streams with it."""
        if worker.path is not None:
            links = iter([link.describe() for link in self._links])
            complete = self._env.now - self._started >= self._env.settings.resume_timeout
            left = len(self._links)
            while left >= 0:
                part = list(islice(links, _LINKS))
                left -= _LINKS
                body = {"links": part, "last": left < 0, "complete": complete}
                self._env.outbox.say(worker.path, event_frame("links", body))
        self._broadcast.agents("worker.up", {"worker": worker.uid})
        self._bulk.tell()

    def worker_gone(self, worker: Worker, reason: str, now: float) -> None:
        """Drop the waits of a worker that has ended, and have agents end their streams with it."""
        self._service.worker_gone(worker)
        self._bulk.tell()
        self._broadcast.agents("worker.down", {"worker": worker.uid})


def _texts(value: object) -> frozenset[str]:
    """A list of texts from a peer.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError("ids must be a list of texts")
    return frozenset(value)
