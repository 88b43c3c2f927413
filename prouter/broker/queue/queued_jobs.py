"""The router's queue at work: jobs for which no agent has space wait here, and go to agents once these have some.

`prouter.broker.queue.job_queue` decides. This module carries that out: rows of the store, calls to agents, events and
the job table. A queued job is in the table like any other. Its connection is `place`, which no agent has, and its path
begins with that for ever. When an agent reports the job, the table moves it to the agent's connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.base.timers import Timer
from prouter.broker.jobs.create_args import create_args
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import Replies
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.placing.occupancy import Occupancy
from prouter.broker.placing.placement import resources_at, resources_of, suits
from prouter.broker.queue.explaining import Finding, explain_job, explain_waiting
from prouter.broker.queue.item import Item, QueueState
from prouter.broker.queue.job_queue import JobQueue
from prouter.broker.queue.offers import Offers
from prouter.broker.queue.requests import queue_place, shape_of
from prouter.broker.queue.rows import QueueRows
from prouter.errors import AgentUnavailable, Conflict, KeyReused, Limit, LimitReached, NotFound, PRouterError
from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import JobRecord, Reason, State

__all__ = ["QueuedJobs"]

log = logging.getLogger("prouter.broker")

_RETRY = 1.0
_LONGEST_RETRY = 30.0
"""Seconds after which an agent that did not carry out a start is asked again, at first and at most."""
_TRIES = 10
"""How often an agent that answers is asked to start a job."""
_EXPIRED = 100
"""Jobs whose time is up that end in one iteration."""
_START_BYTES = 256 * 1024 * 1024
"""Bytes of requests to start that the queue holds, at most."""
_REASON = "it waits in the router's queue for an agent with space"


class QueuedJobs:
    """All queued jobs of this router.

    Attributes:
        queue: who waits, and in which order.
        place: the connection that queued jobs are on.
    """

    def __init__(
        self, env: Env, links: Links, forwarder: Forwarder, ledger: Ledger, replies: Replies, occupancy: Occupancy
    ) -> None:
        self.queue = JobQueue(self, reserve_after=env.settings.queue_reserve_after)
        self.place = queue_place(env.settings.uid)
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._ledger = ledger
        self._replies = replies
        self._occupancy = occupancy
        self._rows = QueueRows(env)
        self._offers = Offers(env, links, self.queue, occupancy)
        self.offer, self.offer_all = self._offers.offer, self._offers.offer_all
        self._claimed: set[str] = set()
        """Jobs whose slot on the chosen agent is taken."""
        self._start_bytes = 0
        self._expiry: Timer | None = None
        self.not_running: Callable[[str], object] = bool
        """Called with the uid of each job that an agent has now, and that nobody has started."""
        ledger.position, ledger.will_start = self.queue.position, self._will_start
        occupancy.released, occupancy.reservation = self.offer, self._kept_free

    @property
    def _time(self) -> float:
        """The clock of the queue's deadlines, seconds since the epoch."""
        return self._env.steady.deadline(self._env.now)

    # -- into the queue -----------------------------------------------------------------------------------------------

    def others_wait(self, selector: dict[str, Any]) -> bool:
        """Whether jobs of the same shape wait already; another one has to wait behind them."""
        return self.queue.first_of(shape_of(selector)) is not None

    def check_space(self, start: dict[str, Any] | None) -> None:
        """Refuse another job if the queue is full.

        Raises:
            LimitReached: that is so.
        """
        most = self._env.settings.queue_size
        if self.queue.waiting >= most:
            text = f"no agent has space, and the queue has {most} jobs, which is its limit (queue.size); try later"
            raise LimitReached(text, retry_after=10, limit=Limit("queue.size", most))
        if start is not None and self._start_bytes >= _START_BYTES:
            raise LimitReached("no agent has space, and the queue's memory is full; try later", retry_after=10)

    def has_space(self, start: dict[str, Any] | None) -> bool:
        """Whether the queue takes another job; see `check_space`."""
        try:
            self.check_space(start)
        except LimitReached:
            return False
        return True

    def add(self, record: JobRecord, selector: dict[str, Any], timeout: float, start: dict[str, Any] | None) -> None:
        """Queue a job.

        Args:
            record: with its uid, name and owner.
            timeout: seconds that it may wait.
            start: ``request`` and ``key`` of its start; None if the client starts it later.
        """
        now = self._time
        item = Item(record.uid, record.name, record.owner, shape_of(selector), now + timeout, now)
        if start is not None:
            item.start, item.start_id = pack_body(start["request"]), str(start["key"])
            self._start_bytes += len(item.start)
        self._env.counts["queue_added"] += 1
        self.queue.add(item, _nothing)
        self._arm()
        log.info("event=job_queued job=%s owner=%r waiting=%d", item.uid, item.owner, self.queue.waiting)

    def record(self, uid: str, name: str, **fields: Any) -> JobRecord:
        """The first record of a job in the queue."""
        waits = {"reason": _REASON, "expected_start": None}
        place = self.place
        return JobRecord(uid, place, name, client=place, queue=waits, created_at=self._env.wall(), **fields)

    def restore(self, rows: list[tuple[str, bytes]]) -> None:
        """Take over jobs that an earlier broker stored, after table and links were restored."""
        items: list[tuple[Item, bool]] = []
        for uid, body in rows:
            entry = self._ledger.table.get(uid)
            if entry is None or entry.ended:
                self._rows.erase(uid)
                continue
            item = self._rows.read(uid, body)
            placed = entry.connection != self.place
            if not placed:
                entry.confirmed = True
            if item.connection and (placed or self._links.get(item.connection) is None):
                item.connection = entry.connection if placed else ""
            self._start_bytes += len(item.start or b"")
            items.append((item, placed))
        self.queue.restore(items)
        self._arm()

    def write_all(self) -> Any:
        """Store every job again, one in each step."""
        for item in self.queue:
            if item.state is not QueueState.OVER:
                self._rows.save(item)
                yield

    def holds(self, entry: Entry) -> bool:
        """Whether a job is in the queue and on no agent."""
        return entry.connection == self.place and not entry.ended

    def start(self, entry: Entry, request: dict[str, Any], key: str, done: Done) -> None:
        """Note a request to start a queued job; `done` gets the job, still queued, once that is stored.

        Raises:
            Conflict, KeyReused: another request to start it came before.
        """
        item, packed = self.queue.get(entry.uid), pack_body(request)
        if item is None:
            raise NotFound(f"job '{entry.uid}' is not found", job=entry.uid)
        if item.start is not None and item.start_id != key:
            raise Conflict(f"job '{entry.uid}' was started already: it waits in the queue", job=entry.uid, state="NEW")
        if item.start is not None and item.start != packed:
            raise KeyReused("this Idempotency-Key was used before, for a request with another body; use a new key")
        more = len(packed) - len(item.start or b"")
        if self._start_bytes + more > _START_BYTES:
            raise LimitReached("the queue's memory is full; try later", job=entry.uid, retry_after=10)
        self._start_bytes += more
        answer = {"job": self._ledger.info(entry)}
        self.queue.keep_start(item, packed, key, lambda: done(answer, None, self._env.now))

    def explain(self, entry: Entry) -> list[Finding]:
        """Why a job waits, has ended or cannot be reached."""
        item = self.queue.get(entry.uid)
        if item is None or not self.holds(entry):
            return list(explain_job(entry, self._links.get(entry.connection)))
        held = self.queue.reserved
        kept = self._links.get(held[1]) if held is not None and held[0] is item else None
        reserved = kept.info.uid if kept is not None else ""
        position = self.queue.position(item.uid)
        return list(explain_waiting(item, position, self._links, self._occupancy, reserved, self._time))

    def stats(self) -> dict[str, float]:
        """Figures for metrics."""
        oldest = self.queue.longest_wait(self._time)
        return {"queue.waiting": self.queue.waiting, "queue.seconds": oldest, "queue.decisions": self.queue.decisions}

    # -- what happens -------------------------------------------------------------------------------------------------

    def expects(self, entry: Entry, link: Link) -> bool:
        """Whether an agent that tells of a job is the one that was asked to create it."""
        item = self.queue.get(entry.uid)
        return item is not None and item.state is QueueState.ASSIGNED and item.connection == link.connection

    def start_is_lost(self, record: JobRecord) -> bool:
        """Whether an agent tells of a job of this queue that was to be started, and whose start is forgotten."""
        ours = record.will_start and record.client == self.place
        return ours and record.state is State.NEW and self.queue.get(record.uid) is None

    def adopted(self, uid: str, connection: str) -> None:
        """Give the slot back that was taken for a job: it is in the table as one of its agent now."""
        if uid in self._claimed:
            self._claimed.discard(uid)
            self._occupancy.release(connection)

    def link_gone(self, link: Link) -> None:
        """Put back the jobs that an agent which is gone was asked to create."""
        if self.queue.agent_gone(link.connection, lambda item: not self._is_here(item)):
            self._arm()
            self.offer_all()

    def job_ended(self, entry: Entry) -> None:
        """Take a job out of the queue that was removed or has ended, and offer the space that it had."""
        item, kept_free = self.queue.get(entry.uid), self._kept_free()
        if item is not None:
            self.queue.end(item)
        self.offer(entry.connection)
        if kept_free and not self._kept_free():
            self.offer(kept_free)

    # -- Actions ------------------------------------------------------------------------------------------------------

    def save(self, item: Item, then: Callable[[], None] | None = None) -> None:
        """See `Actions`."""
        self._rows.save(item, then)

    def erase(self, item: Item) -> None:
        """See `Actions`."""
        self._start_bytes -= len(item.start or b"")
        self._rows.erase(item.uid)

    def claim(self, item: Item) -> None:
        """See `Actions`."""
        if self._is_here(item):
            self._claimed.add(item.uid)
            self._occupancy.reserve(item.connection)
            link, selector = self._links.get(item.connection), item.shape.selector
            taken = resources_at(link, selector) if link is not None else resources_of(selector)
            self._ledger.table.taken.take(item.uid, item.connection, taken)

    def release(self, item: Item) -> None:
        """See `Actions`."""
        if self._is_here(item):
            self._ledger.table.taken.give_back(item.uid)
        self.adopted(item.uid, item.connection)

    def create(self, item: Item) -> None:
        """See `Actions`."""
        link, entry = self._links.get(item.connection), self._ledger.table.get(item.uid)
        if link is None or entry is None:
            self.queue.put_back(item)
            self._arm()
            self.offer_all()
            return
        record = entry.last_record
        resources = resources_at(link, item.shape.selector)
        optional = {
            "client": self.place,
            "owner": record.owner,
            "key": record.key,
            "digest": record.digest,
            "will_start": item.start is not None or None,
        }
        args = create_args(item.uid, item.name, link, self._env.settings.auth, resources, optional)
        link.placed += 1
        self._forwarder.call(link, "job.create", args, partial(self._replied, item, link), self._env.now)

    def start_job(self, item: Item) -> None:
        """Ask the agent to start a job that it has created."""
        entry = self._ledger.table.get(item.uid)
        link = self._links.get(entry.connection) if entry is not None else None
        if item.state is QueueState.OVER:
            return
        if entry is None or link is None or entry.ended:
            self.queue.end(item)
            return
        body = {"uid": item.uid, "request": unpack_body(item.start or b""), "request_id": item.start_id}
        self._forwarder.call(link, "job.start", body, partial(self._started, item, entry, link), self._env.now)

    def host(self, item: Item, now: float) -> str | None:
        """See `Actions`."""
        wished = item.shape.selector
        large = [
            link
            for link in self._links
            if link.up and not link.draining and suits(link, wished) and not item.avoids(link.connection, now)
        ]
        best = min(large, key=lambda link: self._occupancy.fullness(link, resources_at(link, wished)), default=None)
        return best.connection if best is not None else None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _kept_free(self) -> str:
        return self.queue.reserved[1] if self.queue.reserved is not None else ""

    def _will_start(self, uid: str) -> bool:
        item = self.queue.get(uid)
        return item is not None and item.start is not None

    def _is_here(self, item: Item) -> bool:
        """Whether no agent has told of the job."""
        entry = self._ledger.table.get(item.uid)
        return entry is not None and entry.connection == self.place

    def _replied(self, item: Item, link: Link, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        if error is None:
            self._replies.settle(link, item.uid, value, partial(self._settled, item, link), now)
        else:
            self._settled(item, link, None, error, now)

    def _settled(
        self, item: Item, link: Link, _record: JobRecord | None, error: PRouterError | None, now: float
    ) -> None:
        if item.state is not QueueState.ASSIGNED or item.connection != link.connection:
            return
        if error is None or not self._is_here(item):  # The agent may have told of the job before its call failed.
            self._env.counts["queue_placed"] += 1
            self.adopted(item.uid, link.connection)
            self._ledger.when_written(partial(self._created, item))
            return
        log.info("event=queued_job_refused job=%s link=%s error=%r", item.uid, link.connection, error.detail)
        if isinstance(error, LimitReached):  # Jobs of other routers took the space; the agent tells when it has some.
            link.full = True
            self.queue.put_back(item)
        else:
            self._offers.rest(link.connection, self.queue.refuse(item, error.told, self._time, passes=error.passes))
        self._arm()
        self.offer_all()

    def _created(self, item: Item, _now: float) -> None:
        self.queue.created(item)
        if item.start is None:
            self.not_running(item.uid)

    def _started(
        self, item: Item, entry: Entry, link: Link, value: dict[str, Any], error: PRouterError | None, now: float
    ) -> None:
        """Let the job go, ask again, or end a job whose start the agent refuses: nobody else could mend the request."""
        # If it is not NEW the agent has started it, perhaps for another router.
        if error is None or entry.state is not State.NEW or isinstance(error, NotFound):
            self.queue.end(item)
        elif error.passes and (isinstance(error, AgentUnavailable) or item.tries + 1 < _TRIES):
            pause = min(_LONGEST_RETRY, _RETRY * 2.0**item.tries)
            item.tries = min(item.tries + 1, _TRIES)
            self._env.timers.at(now + pause, lambda _now: self.start_job(item))
        else:
            self._ledger.end(entry, self.place, Reason.START_FAILED, f"its agent refused to start it: {error.detail}")
            self._forwarder.call(link, "job.remove", {"uid": entry.uid}, _ignore, now)
            self.queue.end(item)

    def _arm(self) -> None:
        """Set the timer to the next job whose time is up."""
        deadline = self.queue.deadline
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if deadline is not None:
            wait = max(0.0, deadline - self._time)
            self._expiry = self._env.timers.at(self._env.now + wait, self._expire)

    def _expire(self, _now: float) -> None:
        self._expiry = None
        for item in self.queue.expired(self._time, _EXPIRED):
            entry = self._ledger.table.get(item.uid)
            self._env.counts["queue_timeouts"] += 1
            if entry is not None and not entry.ended:
                text = "no agent had space for it in time"
                self._ledger.end(entry, self.place, Reason.QUEUE_TIMEOUT, text)
            self.queue.end(item)
        self._arm()


def _ignore(_value: dict[str, Any], error: PRouterError | None, _now: float) -> None:
    if error is not None:
        log.info("event=discard_failed error=%r", error.detail)


def _nothing() -> None:
    """The client waits for the row of the job table, which is written later."""
