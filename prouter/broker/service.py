"""The calls of workers, one method for each. The reply may come later: after an agent's, at a time, or once stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.catch_up import CatchUp
from prouter.broker.jobs.creation import Creations
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.owner_limits import check_bytes
from prouter.broker.jobs.replies import BY_REVISION, Replies, Settled, read_reply
from prouter.broker.jobs.waits import Waits
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Worker
from prouter.broker.removals import Removals
from prouter.broker.views.bridges import Bridges
from prouter.broker.views.directory import Directory
from prouter.errors import AgentUnavailable, Conflict, InvalidRequest, NotFound, Overloaded, ProtocolError, PRouterError
from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.calls import Request
from prouter.jobs import JobRecord, Reason, State

__all__ = ["Service"]

log = logging.getLogger("prouter.broker")

_USAGE_LIMIT = 2.0
"""Seconds that an agent has to tell a job's usage; after that the table's figures are shown."""
_PAGE = 250
"""Most jobs or events in one reply; more would delay all other work."""
_LIST = 20
"""Frames that a page counts for in the budget of an event loop iteration (`Bounds.iteration`)."""
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
        self._creations = creations
        self._replies = replies
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
        self._handlers = self._make_handlers()

    def _make_handlers(self) -> dict[str, Callable[[dict[str, Any], Done, float], None]]:
        """The methods for calls that need neither the worker nor the call id."""
        return {
            "info": self._info,
            "sync": self._sync,
            "jobs.create": self._creations.create,
            "jobs.start": self._start,
            "jobs.info": self._job_info,
            "jobs.signal": partial(self._change, "job.signal", ("signal",)),
            "jobs.stop": partial(self._change, "job.stop", ("grace",)),
            "jobs.list": self._list,
            "jobs.upload": self._upload,
            "jobs.route": self._route,
            "jobs.explain": self._explain,
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
                self._wait(worker, request, done, now)
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
        self._env.budget -= _LIST
        events = self._ledger.events
        found = events.after(after, _limit(args), MAX_PAGE)
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

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _start(self, args: dict[str, Any], done: Done, now: float) -> None:
        waits = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        if self._creations.queued.holds(waits):
            self._creations.queued.start(waits, args.get("request") or {}, str(args.get("key")), done)
            return
        entry, link = self._reachable(args)
        body = {"uid": entry.uid, "request": args.get("request") or {}, "request_id": str(args.get("key"))}
        if args.get("wait") is not None:
            body["wait"] = args["wait"]
        started = partial(self._started, link, entry, body, done)
        self._forwarder.call(link, "job.start", {**body, **BY_REVISION}, started, now)

    def _started(
        self,
        link: Link,
        entry: Entry,
        body: dict[str, Any],
        done: Done,
        value: dict[str, Any],
        error: PRouterError | None,
        now: float,
    ) -> None:
        """Answer a start with the job as it was then, so that a repeated request gets the same, whatever it does later.

        Args:
            body: arguments with which the agent gives the record itself.
        """

        def settled(record: JobRecord | None, problem: PRouterError | None, now: float) -> None:
            if problem is not None:
                done({}, problem, now)
            elif record is not None:
                done({"job": self._ledger.info(entry, record)}, None, now)
            elif entry.revision == value["revision"]:
                done({"job": self._ledger.info(entry)}, None, now)
            else:  # The reply was repeated after the path was lost, and the table holds what the job did since.
                self._forwarder.call(link, "job.start", body, partial(self._started, link, entry, body, done), now)

        self._settle(link, entry, value, error, settled, now)

    def _change(self, op: str, fields: tuple[str, ...], args: dict[str, Any], done: Done, now: float) -> None:
        """Pass a call on as it is; the reply is the job as it is after that."""
        entry, link = self._reachable(args)

        entry.stopping += op == "job.stop"

        def changed(value: dict[str, Any], error: PRouterError | None, now: float) -> None:
            entry.stopping -= op == "job.stop"
            self._settle(link, entry, value, error, settled, now)

        def settled(record: JobRecord | None, problem: PRouterError | None, now: float) -> None:
            done({"job": self._ledger.info(entry)} if problem is None else {}, problem, now)

        body = {"uid": entry.uid, **{name: args.get(name) for name in fields}, **BY_REVISION}
        self._forwarder.call(link, op, body, changed, now)

    def _settle(
        self,
        link: Link,
        entry: Entry,
        value: dict[str, Any],
        error: PRouterError | None,
        settled: Settled,
        now: float,
    ) -> None:
        if error is not None:
            settled(None, error, now)
        else:
            self._replies.settle(link, entry.uid, value, settled, now)

    def _malformed(self, entry: Entry, problem: ProtocolError) -> None:
        """Count a reply with a malformed record."""
        link = self._links.get(entry.connection)
        self._env.malformed(link.path if link is not None else None, problem)

    def _wait(self, worker: Worker, request: Request, done: Done, now: float) -> None:
        args = request.args
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        until = args.get("until")
        if until is not None and not isinstance(until, (int, float)):
            raise InvalidRequest("Invalid request: until must be a time")

        def answer(ended: bool) -> None:
            shown = _how_it_ended(entry) if ended and entry.removed else None
            done({"job": self._ledger.info(entry, shown), "ended": ended}, None, now)

        if entry.ended or self._ledger.rests(entry):
            answer(True)
        else:
            self._waits.park(worker.uid, request.call_id, entry.uid, until, answer)

    def _job_info(self, args: dict[str, Any], done: Done, now: float) -> None:
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        link = self._links.get(entry.connection)
        if not args.get("usage") or entry.ended or link is None or not link.up:
            done({"job": self._ledger.info(entry)}, None, now)
            return

        def used(value: dict[str, Any], error: PRouterError | None, now: float) -> None:
            record = None
            if error is None:
                try:
                    record = read_reply(value, entry.connection, entry.uid)
                except ProtocolError as problem:
                    self._malformed(entry, problem)
            done({"job": self._ledger.info(entry, record)}, None, now)

        self._forwarder.call(link, "job.usage", {"uid": entry.uid}, used, now, limit=_USAGE_LIMIT)

    def _route(self, args: dict[str, Any], done: Done, now: float) -> None:
        entry = self._ledger.find(str(args.get("connection") or ""), str(args.get("job")))
        record = entry.record
        link = self._links.get(record.connection)
        done({"record": record.to_wire(), "up": link is not None and link.up}, None, now)

    def _explain(self, args: dict[str, Any], done: Done, now: float) -> None:
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        told = [finding.told() for finding in self._creations.queued.explain(entry)]
        done({"job": self._ledger.info(entry), "findings": told}, None, now)

    def _list(self, args: dict[str, Any], done: Done, now: float) -> None:
        self._env.budget -= _LIST
        uids, cursor = self._ledger.table.index.page(
            states=[str(state) for state in args.get("states") or ()],
            agent=args.get("agent"),
            name=args.get("name"),
            owner=args.get("owner"),
            limit=_limit(args),
            cursor=args.get("cursor"),
        )
        entries = [entry for entry in map(self._ledger.table.get, uids) if entry is not None]
        most = args.get("bytes")
        jobs, count = self._ledger.listed(entries, min(most, MAX_PAGE) if isinstance(most, int) else MAX_PAGE)
        if count < len(entries):
            cursor = self._ledger.table.index.cursor(entries[count - 1].uid)
        done({"jobs": jobs, "count": count, "next": cursor}, None, now)

    def _upload(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply what the owner of a job may upload in addition to this. The upload counts until it is measured.

        Raises:
            NotFound: there is no such job, or it was removed.
            LimitReached: the owner has as many bytes as is allowed.
        """
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        size, accounts = args.get("size"), self._ledger.table.accounts
        more = size if isinstance(size, int) and size > 0 else 0
        most = self._env.settings.sandbox_bytes_per_owner
        check_bytes(entry.owner, accounts.bytes(entry.owner), most, more, job=entry.uid)
        if most and more:
            accounts.expect(entry.uid, entry.owner, more)
        done({"left": most - accounts.bytes(entry.owner)} if most else {}, None, now)

    def _list_bridges(self, args: dict[str, Any], done: Done, now: float) -> None:
        self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        self._bridges.listed(args, done, now)

    def _reachable(self, args: dict[str, Any]) -> tuple[Entry, Link]:
        """A job that exists, and the link to its agent.

        Raises:
            NotFound: there is no such job, or it was removed.
            AgentUnavailable: the agent is gone.
        """
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        if self._creations.queued.holds(entry):
            text = f"job '{entry.uid}' waits in the queue: nothing of it runs, and it has no sandbox yet"
            raise Conflict(text, job=entry.uid, state=entry.state.value, code="queued")
        link = self._links.get(entry.connection)
        if link is None:
            raise AgentUnavailable(
                f"the agent of job '{entry.uid}' is gone", job=entry.uid, state=entry.state.value, code="agent_lost"
            )
        return entry, link


def _limit(args: dict[str, Any]) -> int:
    limit = args.get("limit")
    if limit is None:
        return 100
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InvalidRequest("Invalid request: limit must be a number from 1 on")
    return min(limit, _PAGE)


def _how_it_ended(entry: Entry) -> JobRecord:
    """A removed job, as the clients see it that waited for its end. Its last record may say that it runs."""
    last = entry.last_record
    if last.ended:
        return last
    removed: dict[str, Any] = {"state": State.FINISHED, "reason": Reason.REMOVED, "finished_at": entry.ended_at}
    return replace(last, **removed, endpoint=None, pid=None)
