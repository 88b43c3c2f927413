"""What another router may have done to a job, and this broker has not heard of yet.

A client that creates a job at one router may ask another one for it a moment later. Agents tell all their routers of a
change before they reply to the one that asked for it. So a broker that does not know the job, or knows it as NEW, asks
its agent to reply (`sync`): what the agent has sent before has arrived by then. If the agent is not linked, does not
reply, or has not listed its jobs yet, the call waits for that. Only agents that link to several routers are asked or
waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.queue.requests import is_queue_place, queue_place
from prouter.errors import AgentUnavailable, PRouterError
from prouter.fabric.calls import Request
from prouter.jobs import State

__all__ = ["CatchUp"]

Then = Callable[[PRouterError | None, float], None]
"""Called with the time once the broker has caught up, or with an error if it cannot."""

_ABOUT_A_JOB = frozenset(
    {
        "bridges", "jobs.explain", "jobs.info", "jobs.remove", "jobs.route", "jobs.signal", "jobs.start", "jobs.stop",
        "jobs.upload", "jobs.wait",
    }
)  # fmt: skip
"""Calls of workers about one job."""
_BY_STATE = frozenset({"jobs.route", "jobs.wait"})
"""Those of them whose answer is wrong if the job has been started, and the table has it as NEW."""

_LOOK_AGAIN = 0.05
"""Seconds after which a call that waits for an agent looks again."""
_LIMIT = 2.0
"""Seconds that an agent has to reply; after that it is asked again, or the table counts as it is."""
_NEW_LINK = 2.0
"""Seconds that an agent may take to link to this router after it has linked to another one."""
_MOST = 1000
"""Calls that wait for agents at most; others are answered by the table as it is."""


@dataclass(slots=True)
class _Wanted:
    """A call about a job that waits for news of it.

    Attributes:
        connection: empty for whichever has the job.
        by_state: whether the call goes by the job's state.
        until: when it is given up at the latest.
    """

    connection: str
    job: str
    by_state: bool
    then: Then
    until: float


class CatchUp:
    """Brings the job table up to date for calls about one job."""

    def __init__(self, env: Env, links: Links, ledger: Ledger, forwarder: Forwarder) -> None:
        self._env = env
        self._links = links
        self._ledger = ledger
        self._forwarder = forwarder
        self._own_place = queue_place(env.settings.uid)
        self._asking: dict[Link, list[Then]] = {}
        """Calls that wait for the reply of an agent."""
        self._next: dict[Link, list[Then]] = {}
        """Calls that came after the agent was asked; they wait for the next reply."""
        self._waiting = 0
        self._held: dict[tuple[str, str], str] = {}
        """By worker and id, names of the calls that are not carried out yet."""

    def call(self, worker: str, request: Request, carry_out: Callable[[float], None], done: Done, now: float) -> None:
        """Call `carry_out` for a worker's call, at once unless the table has to catch up; `done` if it cannot."""
        if request.op not in _ABOUT_A_JOB:
            carry_out(now)
            return
        held = (worker, request.call_id)
        self._held[held] = request.op

        def then(problem: PRouterError | None, now: float) -> None:
            if self._held.pop(held, None) is None:
                return  # Nobody waits for it any more.
            if problem is not None:
                done({}, problem, now)
            else:
                carry_out(now)

        connection, job = str(request.args.get("connection") or ""), str(request.args.get("job"))
        until = request.args.get("until")  # of a wait
        patience = until if isinstance(until, (int, float)) else float("inf")
        self.job(_Wanted(connection, job, request.op in _BY_STATE, then, patience), now)

    def cancel(self, worker: str, call_id: str) -> bool:
        """Drop a call that is not carried out yet; return whether there was one."""
        return self._held.pop((worker, call_id), None) is not None

    def waits_of(self, worker: str) -> list[str]:
        """Ids of a worker's calls of ``jobs.wait`` that are not carried out yet."""
        return [call_id for (uid, call_id), op in self._held.items() if uid == worker and op == "jobs.wait"]

    def worker_gone(self, worker: str) -> int:
        """Drop the calls of a worker that has ended; return how many there were."""
        gone = [held for held in self._held if held[0] == worker]
        for held in gone:
            del self._held[held]
        return len(gone)

    def job(self, wanted: _Wanted, now: float) -> None:
        """Call `wanted.then`: at once if the table is sure about the job, else when it has caught up."""
        link = self._links.get(wanted.connection)
        patience = self._env.settings.hold if link is not None else self._patience(wanted.connection)
        wanted.until = min(wanted.until, now + patience)
        if self._settled(wanted, now):
            return
        if is_queue_place(wanted.connection) and wanted.connection != self._own_place and self._shared:
            wanted.then(_queued_elsewhere(wanted.job), now)
            return
        if link is None and any(link.info.partial for link in self._links):
            wanted.then(_elsewhere(wanted.job), now)
            return
        self._wait(wanted, now)

    def agent(self, connection: str, then: Then, now: float) -> None:
        """Call `then` once all has arrived that the agent had sent before; at once if the agent is not shared or away.

        It gets an error if the agent did not reply.
        """
        link = self._links.get(connection)
        if link is None or not link.up or link.info.routers < 2:
            then(None, now)
        elif link in self._asking:
            self._next.setdefault(link, []).append(then)
        else:
            self._asking[link] = [then]
            self._ask(link, now)

    def _ask(self, link: Link, now: float) -> None:
        self._forwarder.call(link, "sync", {}, partial(self._replied, link), now, limit=_LIMIT)

    def _replied(self, link: Link, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        """Go on with the calls. An agent that does not know the call keeps nobody waiting."""
        asked, later = self._asking.pop(link), self._next.pop(link, [])
        if later:
            self._asking[link] = later
            self._ask(link, now)
        silent = error if error is not None and error.code != "unknown_call" else None
        for then in asked:
            then(silent, now)

    def _settled(self, wanted: _Wanted, now: float) -> bool:
        """Whether nothing has to be waited for but, perhaps, a reply of the agent."""
        connection, then = wanted.connection, wanted.then
        entry, link = self._ledger.table.get(wanted.job), self._links.get(connection)
        if entry is not None and entry.lost and self._may_be_elsewhere(entry.connection):
            then(_elsewhere(wanted.job), now)
        elif entry is not None:
            sure = entry.state is not State.NEW or connection not in ("", entry.connection)
            at = self._links.get(entry.connection)
            if not sure and wanted.by_state and at is not None and at.info.routers > 1 and not at.up:
                return False
            self.agent("" if sure else entry.connection, partial(self._heard, wanted), now)
        elif link is not None and (link.info.routers < 2 or (link.up and link.confirmed)):
            self.agent(connection, partial(self._heard, wanted), now)
        else:
            return False
        return True

    def _heard(self, wanted: _Wanted, silent: PRouterError | None, now: float) -> None:
        """Go on with a call once the agent has replied; without a reply, wait for it if the answer could be wrong."""
        if silent is None or (self._ledger.table.get(wanted.job) is not None and not wanted.by_state):
            wanted.then(None, now)
        else:
            self._wait(wanted, now)

    def _wait(self, wanted: _Wanted, now: float) -> None:
        """Look again soon, unless the time is up."""
        if now < wanted.until and self._waiting < _MOST:
            self._waiting += 1
            self._env.timers.at(now + _LOOK_AGAIN, partial(self._look, wanted))
            return
        entry = self._ledger.table.get(wanted.job)
        link = self._links.get(entry.connection if entry is not None else wanted.connection)
        wanted.then(_away(wanted.job, link) if link is not None else None, now)

    def _look(self, wanted: _Wanted, now: float) -> None:
        """See whether the agent is linked and has listed its jobs by now."""
        self._waiting -= 1
        if not self._settled(wanted, now):
            self._wait(wanted, now)

    def _patience(self, connection: str) -> float:
        """Seconds to wait for an agent that has never been linked; none if all agents have this router alone."""
        if connection in self._ledger.peers or connection == self._own_place:
            return 0.0
        return _NEW_LINK if self._shared else 0.0

    @property
    def _shared(self) -> bool:
        """Whether there are other routers, as far as agents tell."""
        return any(link.info.routers > 1 for link in self._links)

    def _may_be_elsewhere(self, connection: str) -> bool:
        """Whether the agent of a job that was lost may be linked to another router."""
        peer = self._ledger.peers.get(connection)
        return peer is not None and peer.info.partial and self._links.get(connection) is None


def _elsewhere(job: str) -> AgentUnavailable:
    text = f"this router is not linked to the agent of job '{job}'; another router may be"
    return AgentUnavailable(text, job=job, code="agent_elsewhere", retry_after=1)


def _queued_elsewhere(job: str) -> AgentUnavailable:
    text = f"job '{job}' was queued by another router, which alone knows it until an agent has it"
    return AgentUnavailable(text, job=job, code="agent_elsewhere", retry_after=1)


def _away(job: str, link: Link) -> AgentUnavailable:
    text = f"agent '{link.info.uid}' does not answer, and this router has no news of job '{job}'; another router may"
    return AgentUnavailable(text, job=job, retry_after=1)
