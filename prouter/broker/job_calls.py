"""The calls of workers about single jobs, and lists of jobs, one method for each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.base.pages import PAGE_COST, page_limit
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.listing import cursor_after, list_page
from prouter.broker.jobs.replies import BY_REVISION, Replies, Settled, read_reply
from prouter.broker.jobs.waits import Waits
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Worker
from prouter.broker.placing.owner_limits import check_bytes
from prouter.broker.queue.queued_jobs import QueuedJobs
from prouter.errors import AgentUnavailable, Conflict, InvalidRequest, ProtocolError, PRouterError
from prouter.fabric.bounds import MAX_PAGE
from prouter.fabric.calls import Request
from prouter.jobs import JobRecord, Reason, State

__all__ = ["JobCalls"]

_USAGE_LIMIT = 2.0
"""Seconds that an agent has to tell a job's usage; after that the table's figures are shown."""


class JobCalls:
    """Carries out the calls about jobs that exist."""

    def __init__(
        self,
        env: Env,
        links: Links,
        forwarder: Forwarder,
        ledger: Ledger,
        queued: QueuedJobs,
        replies: Replies,
        waits: Waits,
    ) -> None:
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._ledger = ledger
        self._queued = queued
        self._replies = replies
        self._waits = waits

    def start(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Start a job, or note the start of a queued one."""
        waits = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        if self._queued.holds(waits):
            self._queued.start(waits, args.get("request") or {}, str(args.get("key")), done)
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

    def change(self, op: str, fields: tuple[str, ...], args: dict[str, Any], done: Done, now: float) -> None:
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

    def wait(self, worker: Worker, request: Request, done: Done, now: float) -> None:
        """Reply once a job has ended or the time is up; see `Waits`."""
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

    def info(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply with a job, with its usage as the agent tells it if that is asked for."""
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

    def route(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply with a job's record, and whether its agent is linked."""
        entry = self._ledger.find(str(args.get("connection") or ""), str(args.get("job")))
        record = entry.record
        link = self._links.get(record.connection)
        done({"record": record.to_wire(), "up": link is not None and link.up}, None, now)

    def explain(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply with a job, and why it waits, has ended or cannot be reached."""
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        told = [finding.told() for finding in self._queued.explain(entry)]
        done({"job": self._ledger.info(entry), "findings": told}, None, now)

    def page(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Reply with a page of the jobs that fit, newest first."""
        self._env.budget -= PAGE_COST
        entries, cursor = list_page(
            self._ledger.table,
            states=[str(state) for state in args.get("states") or ()],
            agent=args.get("agent"),
            name=args.get("name"),
            owner=args.get("owner"),
            limit=page_limit(args),
            cursor=args.get("cursor"),
        )
        most = args.get("bytes")
        jobs, count = self._ledger.listed(entries, min(most, MAX_PAGE) if isinstance(most, int) else MAX_PAGE)
        if count < len(entries):
            cursor = cursor_after(entries[count - 1])
        done({"jobs": jobs, "count": count, "next": cursor}, None, now)

    def upload(self, args: dict[str, Any], done: Done, now: float) -> None:
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

    def _reachable(self, args: dict[str, Any]) -> tuple[Entry, Link]:
        """A job that exists, and the link to its agent.

        Raises:
            NotFound: there is no such job, or it was removed.
            AgentUnavailable: the agent is gone.
        """
        entry = self._ledger.existing(str(args.get("connection") or ""), str(args.get("job")))
        if self._queued.holds(entry):
            text = f"job '{entry.uid}' waits in the queue: nothing of it runs, and it has no sandbox yet"
            raise Conflict(text, job=entry.uid, state=entry.state.value, code="queued")
        link = self._links.get(entry.connection)
        if link is None:
            raise AgentUnavailable(
                f"the agent of job '{entry.uid}' is gone", job=entry.uid, state=entry.state.value, code="agent_lost"
            )
        return entry, link


def _how_it_ended(entry: Entry) -> JobRecord:
    """A removed job, as the clients see it that waited for its end. Its last record may say that it runs."""
    last = entry.last_record
    if last.ended:
        return last
    removed: dict[str, Any] = {"state": State.FINISHED, "reason": Reason.REMOVED, "finished_at": entry.ended_at}
    return replace(last, **removed, endpoint=None, pid=None)
