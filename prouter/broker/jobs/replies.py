"""Agents' replies to calls about jobs: each waits until the job table holds the record that it speaks of.

A job's record reaches the table one way: by the agent's events `job` and `jobs`. A call with `BY_REVISION` among its
arguments is answered with the revision that the job had then. `Replies.settle` goes on once the table has reached it:

* On one path the event comes first, so the table mostly has the revision already.
* If the path was lost in between, the reply may come before the list of jobs on the next path. It waits for the list.
* If the reply is lost, the broker sends the call again on the next path, and the agent repeats its reply.

Agents of earlier versions reply with the whole record. The table takes it, unless an event has brought it before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.base.timers import Timer
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.records import read_record, read_revision
from prouter.broker.links.link import Link
from prouter.errors import AgentUnavailable, ProtocolError, PRouterError
from prouter.jobs import JobRecord

__all__ = ["BY_REVISION", "Replies", "Settled", "read_reply"]

BY_REVISION: dict[str, Any] = {"answer": "revision"}
"""Arguments of a call whose reply need not hold the job's record; an agent of an earlier version ignores them."""

Settled = Callable[[JobRecord | None, PRouterError | None, float], None]
"""Called with the record that the reply held, None if it held a revision, with an error if there is one, and the time.
"""


class _Waiting:
    """A reply whose record has not come yet."""

    def __init__(self, link: Link, uid: str, revision: int, settled: Settled, timer: Timer) -> None:
        self.link = link
        self.uid = uid
        self.revision = revision
        self.settled = settled
        self.timer = timer


class Replies:
    """Replies of all agents that wait for a record."""

    def __init__(self, env: Env, ledger: Ledger) -> None:
        self._env = env
        self._ledger = ledger
        self._waiting: dict[str, list[_Waiting]] = {}
        """By the uid of the job."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def settle(self, link: Link, uid: str, value: dict[str, Any], settled: Settled, now: float) -> None:
        """Call `settled` exactly once: when the table holds what the agent's reply about this job speaks of, or with a
        `PRouterError` when that cannot happen any more.

        Args:
            value: the reply, with the field ``record`` or ``revision``.
        """
        try:
            if "revision" not in value:
                record = read_reply(value, link.connection, uid)
                self._take(record, link, now)
                settled(record, None, now)
                return
            revision = read_revision(value)
        except ProtocolError as problem:
            self._env.malformed(link.path, problem)
            settled(None, _malformed(link, problem), now)
            return
        if self._reached(link, uid, revision):
            settled(None, None, now)
            return
        waiting = self._waiting.setdefault(uid, [])
        timer = self._env.timers.at(now + self._env.settings.resume_timeout, partial(self._too_late, uid))
        waiting.append(_Waiting(link, uid, revision, settled, timer))

    def arrived(self, uid: str, now: float) -> None:
        """Settle the replies that waited for this job's record: an event has changed the job."""
        if uid in self._waiting:
            self._end(uid, lambda one: self._reached(one.link, uid, one.revision), None, now)

    def refused(self, link: Link, uid: str, problem: ProtocolError, now: float) -> None:
        """Fail the replies of this agent that waited for this job's record: it is malformed, or there are too many."""
        if uid in self._waiting:
            self._end(uid, lambda one: one.link is link, _malformed(link, problem), now)

    def listed(self, link: Link, now: float) -> None:
        """Fail what still waits for a record of this agent, which has told all of its jobs."""
        problem = ProtocolError("malformed list of jobs: it does not hold the job")
        for uid in [uid for uid, waiting in self._waiting.items() if any(one.link is link for one in waiting)]:
            self.refused(link, uid, problem, now)

    def link_gone(self, link: Link, reason: str, now: float) -> None:
        """Fail what waits for a record of an agent that does not come back."""
        error = AgentUnavailable(f"agent '{link.info.uid}' is gone: {reason}", code="agent_lost")
        for uid in list(self._waiting):
            self._end(uid, lambda one: one.link is link, error, now)

    def _take(self, record: JobRecord, link: Link, now: float) -> None:
        """Bring a reply's record to the table, if no event has."""
        if not self._reached(link, record.uid, record.revision):
            self._ledger.apply(record, link.info.uid)
            self.arrived(record.uid, now)

    def _reached(self, link: Link, uid: str, revision: int) -> bool:
        """Whether the table holds this revision of the agent's job, or a later one."""
        entry = self._ledger.table.get(uid)
        if entry is None or entry.connection != link.connection:
            return False
        return entry.removed or (entry.confirmed and not entry.lost and entry.revision >= revision)

    def _end(self, uid: str, over: Callable[[_Waiting], bool], error: PRouterError | None, now: float) -> None:
        ended = [one for one in self._waiting[uid] if over(one)]
        left = [one for one in self._waiting[uid] if one not in ended]
        if left:
            self._waiting[uid] = left
        else:
            del self._waiting[uid]
        for one in ended:
            one.timer.cancel()
            one.settled(None, error, now)

    def _too_late(self, uid: str, now: float) -> None:
        """Fail the reply that has waited the longest for this job's record."""
        first = self._waiting[uid][0]
        agent = f"agent '{first.link.info.uid}'"
        error: PRouterError = ProtocolError(f"{agent} changed job '{uid}' and did not tell its record")
        if not first.link.up:
            error = AgentUnavailable(f"{agent} is away", retry_after=2)
        self._end(uid, lambda one: one is first, error, now)


def read_reply(value: dict[str, Any], connection: str, uid: str) -> JobRecord:
    """The record in an agent's reply.

    Raises:
        ProtocolError: there is none, or it is not one of this job.
    """
    record = read_record(value.get("record"), connection)
    if record.uid != uid:
        raise ProtocolError(f"malformed job record: it is of job '{record.uid}', not of '{uid}'")
    return record


def _malformed(link: Link, problem: ProtocolError) -> ProtocolError:
    return ProtocolError(f"agent '{link.info.uid}' gave an answer that makes no sense: {problem.detail}")
