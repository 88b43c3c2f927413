"""The calls of workers: which method carries out each of them, and those about the router itself.

A reply may come later: after an agent's, at a time, or once something is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.base.pages import PAGE_COST, page_limit
from prouter.broker.catch_up import CatchUp
from prouter.broker.creations.creation import Creations
from prouter.broker.job_calls import JobCalls
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.jobs.waits import Waits
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Worker
from prouter.broker.removals import Removals
from prouter.broker.views.bridges import Bridges
from prouter.broker.views.directory import Directory
from prouter.errors import InvalidRequest, NotFound, Overloaded, PRouterError
from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.calls import Request

__all__ = ["Service"]

_READS = frozenset(
    {
        "info",
        "sync",
        "connections",
        "connections.page",
        "jobs.info",
        "jobs.list",
        "jobs.route",
        "jobs.explain",
        "events",
        "stats",
        "bridges",
    }
)
"""Calls that change nothing: a repeated one is carried out again, so their replies are not kept."""


class Service:
    """Carries out the calls of workers."""

    def __init__(
        self,
        env: Env,
        links: Links,
        forwarder: Forwarder,
        ledger: Ledger,
        creations: Creations,
        replies: Replies,
        waits: Waits,
        directory: Directory,
        bridges: Bridges,
        removals: Removals,
        *,
        stats: Callable[[float], dict[str, float]],
        stop: Callable[[], None],
    ) -> None:
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._ledger = ledger
        self._jobs = JobCalls(env, links, forwarder, ledger, creations.queued, replies, waits)
        self._waits = waits
        self._directory = directory
        self._bridges = bridges
        self._removals = removals
        self._stats = stats
        self._stop = stop
        self._catch_up = CatchUp(env, links, ledger, forwarder)
        self.running = 0
        """Number of calls that are being carried out."""
        self.calls = 0
        """Number of calls since the start."""
        self._handlers = self._make_handlers(creations)

    def _make_handlers(self, creations: Creations) -> dict[str, Callable[[dict[str, Any], Done, float], None]]:
        """The methods for calls that need neither the worker nor the call id."""
        return {
            "info": self._info,
            "sync": self._sync,
            "jobs.create": creations.create,
            "jobs.start": self._jobs.start,
            "jobs.info": self._jobs.info,
            "jobs.signal": partial(self._jobs.change, "job.signal", ("signal",)),
            "jobs.stop": partial(self._jobs.change, "job.stop", ("grace",)),
            "jobs.list": self._jobs.page,
            "jobs.upload": self._jobs.upload,
            "jobs.route": self._jobs.route,
            "jobs.explain": self._jobs.explain,
            "agents.drain": self._drain,
            "bridges": self._list_bridges,
            "bridges.end": self._bridges.end,
            "events": self._events,
            "stats": self._metrics,
            "shutdown": self._shutdown,
        }

    def call(self, worker: Worker, request: Request, now: float) -> None:
        """Carry out a worker's call."""
        done = partial(self._reply, worker, request)
        self.running += 1
        self.calls += 1
        if self.running > self._env.settings.bounds.calls and request.op not in _READS:
            done({}, Overloaded("too many requests are being carried out", retry_after=1), now)
            return
        self._catch_up.call(worker.uid, request, partial(self._carry_out, worker, request, done), done, now)

    def _carry_out(self, worker: Worker, request: Request, done: Done, now: float) -> None:
        try:
            if request.op == "jobs.wait":
                self._jobs.wait(worker, request, done, now)
            elif request.op == "jobs.remove":
                self._removals.remove(request, done, now)
            elif request.op in ("connections", "connections.page"):
                self._connections(worker, request, now)
            elif request.op in self._handlers:
                self._handlers[request.op](request.args, done, now)
            else:
                raise PRouterError(
                    f"the broker does not know the call '{request.op}'; its version may be older than the worker's",
                    code="unknown_call",
                )
        except PRouterError as error:
            done({}, error, now)

    def failed(self, worker: Worker, request: Request, error: PRouterError, now: float) -> None:
        """Answer a call that raised an unexpected exception."""
        self._reply(worker, request, {}, error, now)

    def cancel_wait(self, worker: Worker, call_id: str) -> None:
        """Drop a wait whose client disconnected."""
        if self._catch_up.cancel(worker.uid, call_id) or self._waits.cancel(worker.uid, call_id):
            self.running -= 1
            worker.responder.forget(call_id)

    def keep_waits(self, worker: Worker, call_ids: Collection[str]) -> None:
        """Drop all other waits of a worker that is back: their clients disconnected while it could not tell."""
        for call_id in [*self._waits.of_worker(worker.uid), *self._catch_up.waits_of(worker.uid)]:
            if call_id not in call_ids:
                self.cancel_wait(worker, call_id)

    def worker_gone(self, worker: Worker) -> None:
        """Drop the waits of a worker that has ended."""
        self.running -= self._waits.worker_gone(worker.uid) + self._catch_up.worker_gone(worker.uid)

    def _reply(
        self, worker: Worker, request: Request, value: dict[str, Any], error: PRouterError | None, now: float
    ) -> None:
        self.running -= 1
        frame = worker.responder.reply(request.call_id, value, error, keep=request.op not in _READS)
        if worker.path is not None:
            self._env.outbox.say(worker.path, frame)

    # -- the router ---------------------------------------------------------------------------------------------

    def _info(self, args: dict[str, Any], done: Done, now: float) -> None:
        done({"auth": self._env.settings.auth, "platform": self._env.settings.platform}, None, now)

    def _sync(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply at once. What is sent to a worker keeps its order, so it then knows all that was sent before.

        With a ``connection`` that includes what its agent had sent to the broker.
        """
        self._catch_up.agent(str(args.get("connection") or ""), lambda problem, now: done({}, problem, now), now)

    def _connections(self, worker: Worker, request: Request, now: float) -> None:
        """Reply with all connections or a page of them, or with the etag alone if the caller has that version."""
        self.running -= 1
        directory = self._directory
        packed = (directory.page if request.op == "connections.page" else directory.connections)(request.args, now)
        frame = worker.responder.reply_packed(request.call_id, packed)
        if worker.path is not None:
            self._env.outbox.say(worker.path, frame)

    def _metrics(self, args: dict[str, Any], done: Done, now: float) -> None:
        done({"metrics": self._stats(now)}, None, now)

    def _shutdown(self, args: dict[str, Any], done: Done, now: float) -> None:
        done({}, None, now)
        self._stop()

    def _events(self, args: dict[str, Any], done: Done, now: float) -> None:
        after = args.get("after")
        if after is not None and not isinstance(after, int):
            raise InvalidRequest("Invalid request: after must be an event id")
        self._env.budget -= PAGE_COST
        events = self._ledger.events
        found = events.after(after, page_limit(args), MAX_PAGE)
        done({"events": found, "first": events.first, "last": events.last}, None, now)

    def _drain(self, args: dict[str, Any], done: Done, now: float) -> None:
        connection = str(args.get("connection"))
        link = self._links.get(connection)
        if link is None:
            raise NotFound(f"connection '{connection}' is not found")
        on = bool(args.get("on"))

        def drained(value: dict[str, Any], error: PRouterError | None, now: float) -> None:
            if error is None:
                self._directory.drained(link, on)
            done({}, error, now)

        self._forwarder.call(link, "drain", {"on": on}, drained, now)

    def _list_bridges(self, args: dict[str, Any], done: Done, now: float) -> None:
        self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        self._bridges.listed(args, done, now)
