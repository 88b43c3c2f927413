"""Events of agents: all jobs when an agent links, every change of a job, the load, what running jobs and sandboxes use.

These events are the one way by which a job's record reaches the job table. Replies to calls only name a revision
(`prouter.broker.jobs.replies`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.creations.creation import Creations
from prouter.broker.discards import Discards
from prouter.broker.jobs.entry import Entry, pack_record
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.records import read_record, read_sandbox, read_usage, record_uid
from prouter.broker.jobs.replies import Replies, read_reply
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.hello import read_routers
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.views.directory import Directory
from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_JOB_EVENT
from prouter.fabric.calls import event_name, read_event
from prouter.fabric.frames import Frame
from prouter.fabric.parts import PART_ITEMS
from prouter.jobs import JobRecord

__all__ = ["AgentEvents", "read_agent_event"]

log = logging.getLogger("prouter.broker")


_CHANGE = 7 * 1024
"""Bytes that a change of a job counts for, in addition to those of its record."""
_COPIES = 3
"""How often the bytes of its record count: the broker stores the record twice and sends it to every worker."""
_LARGE_EVENTS = frozenset({"jobs", "usage", "sandboxes"})
"""Events about many jobs."""


def read_agent_event(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Name and body of an agent's event. One that is too large for its kind is not even unpacked.

    Raises:
        ProtocolError: it is malformed or too large.
    """
    if len(frame.payload) > MAX_JOB_EVENT and event_name(frame) not in _LARGE_EVENTS:
        raise ProtocolError(f"an event about one job has {len(frame.payload)} bytes, more than {MAX_JOB_EVENT}")
    return read_event(frame)


class AgentEvents:
    """Takes the events of all agents to the job table.

    Args:
        given: called with each record of a job that an agent has given instead of another, before it is taken.
        not_running: called with the uid of each job that is NEW in the complete list of its agent. Somebody may wait
            for its end, because an earlier broker knew of a start that it did not live to store.
        leaves: called with the link of an agent that is about to stop and to come back.
    """

    def __init__(
        self,
        env: Env,
        ledger: Ledger,
        directory: Directory,
        creations: Creations,
        replies: Replies,
        forwarder: Forwarder,
        links: Links,
        *,
        given: Callable[[JobRecord], None],
        not_running: Callable[[str], None],
        leaves: Callable[[Link], None],
    ) -> None:
        self._env = env
        self._ledger = ledger
        self._directory = directory
        self._keys, self._queued = creations.keys, creations.queued
        self._replies = replies
        self._discards = Discards(env, links, forwarder, creations.keys, self._wanted)
        self._given = given
        self._not_running = not_running
        self._leaves = leaves

    def receive(self, link: Link, name: str, body: dict[str, Any], now: float) -> None:
        """Handle an event of an agent. Unknown events are ignored, because a newer agent may know more of them.

        Raises:
            ProtocolError: the body is malformed.
        """
        if name == "job":
            self._job(link, body.get("record"), now)
        elif name == "jobs":
            self._jobs(link, body, now)
        elif name == "job.removed":
            self._removed(link, body.get("record"), now)
        elif name == "routers":
            self._directory.routers_reported(link, read_routers(body))
        elif name == "leaving":
            self._leaves(link)
        elif name == "load":
            self._directory.load_reported(link, body)
            self._queued.offer(link.connection)
        elif name == "pool":
            self._directory.pool_reported(link, body)
        elif name == "usage":
            self._usage(link, body.get("jobs"))
        elif name == "sandboxes":
            self._sandboxes(link, body.get("jobs"))

    def _jobs(self, link: Link, body: dict[str, Any], now: float) -> None:
        """Take a part of the list of an agent's jobs. After the last part, jobs that it did not name are lost."""
        wires = body.get("jobs")
        if not isinstance(wires, list):
            raise ProtocolError("jobs must be a list")
        if len(wires) > PART_ITEMS:  # Each record takes as long as a small frame.
            raise ProtocolError(f"a part of the list of jobs has more than {PART_ITEMS}")
        self._env.budget -= len(wires)
        for wire in wires:
            uid = record_uid(wire)
            try:
                if link.listed is None or not self._as_known(link, wire, uid or "", now):
                    self._job(link, wire, now, listed=link.listed is not None)
            except ProtocolError as error:
                self._env.malformed(link.path, error)  # The other jobs are taken all the same.
            if link.listed is not None and uid is not None and self._ledger.table.get(uid) is not None:
                link.listed.add(uid)
        if body.get("complete") is not True or link.listed is None:
            return
        listed, link.listed = link.listed, None
        link.confirmed = True
        self._replies.listed(link, now)
        self._removed_before(link.connection, listed)
        self._ledger.lose(
            link.connection, self._ledger.table.live(link.connection) - listed, "it knows nothing of the job"
        )
        for uid in sorted(self._ledger.table.live(link.connection)):
            entry = self._ledger.table.get(uid)
            if entry is not None and self._ledger.rests(entry):
                self._not_running(uid)
        self._queued.offer(link.connection)
        # A line for each of thousands of agents without jobs says nothing, and takes longer than their empty lists.
        jobs = len(self._ledger.table.live(link.connection))
        log.log(logging.INFO if jobs else logging.DEBUG, "event=jobs_announced link=%s jobs=%d", link.connection, jobs)

    def _as_known(self, link: Link, wire: Any, uid: str, now: float) -> bool:
        """Whether an agent lists a job just as the table has it: then its record was checked before.

        After a restart of the router that is so for nearly all jobs of all agents at once.
        """
        entry = self._ledger.table.get(uid)
        if entry is None or entry.lost or entry.removed or wire.get("instead_of") or self._keys.unwanted(uid):
            return False
        if (entry.connection, entry.agent) != (link.connection, link.info.uid) or entry.packed != pack_record(wire):
            return False
        entry.confirmed = True
        self._replies.arrived(uid, now)
        return True

    def _removed_before(self, connection: str, listed: set[str]) -> None:
        """Close jobs that an earlier broker was asked to remove, and that their agent has not got any more."""
        for entry in self._ledger.table.to_remove(connection):
            if entry.uid not in listed and not entry.lost:
                self._ledger.close(entry, entry.last_record, entry.removal)

    def _job(self, link: Link, wire: object, now: float, *, listed: bool = False) -> None:
        """Take a job's record, and settle the replies that wait for it.

        Raises:
            ProtocolError: the record is malformed, or the table takes none.
        """
        try:
            self._take(link, read_record(wire, link.connection), now, listed=listed)
        except ProtocolError as error:
            uid = record_uid(wire)
            if uid is not None:
                self._replies.refused(link, uid, error, now)
            raise

    def _take(self, link: Link, record: JobRecord, now: float, *, listed: bool) -> None:
        if record.instead_of is not None:
            self._given(record)
        unwanted = [uid for uid in (record.uid, record.instead_of) if uid is not None and self._keys.unwanted(uid)]
        if unwanted:
            self._discards.discard(link, record.uid, now, unwanted=unwanted)
            return
        entry = self._ledger.table.get(record.uid)
        if entry is not None and entry.connection != link.connection and entry.client is not None:
            self._take_queued(link, entry, record, now)
            return
        if entry is not None and entry.connection != link.connection:
            raise ProtocolError(f"job '{record.uid}' belongs to another agent")
        if entry is not None and (entry.removed or (entry.lost and self._queued.start_is_lost(record))):
            self._discards.discard(link, record.uid, now)
        else:
            changed = self._ledger.apply(record, link.info.uid, listed=listed)
            if changed is not None and link.path is not None:
                link.path.debt += _CHANGE + _COPIES * changed.size
            self._replies.arrived(record.uid, now)

    def _take_queued(self, link: Link, entry: Entry, record: JobRecord, now: float) -> None:
        """Take the record of a job that was queued from the agent that was to create it; no other agent is to have it.

        An agent that the router had given up may have created the job before it went to another one.
        """
        if entry.ended or not self._queued.expects(entry, link):
            self._discards.discard(link, record.uid, now)
            return
        self._ledger.apply(record, link.info.uid)
        self._queued.adopted(record.uid, link.connection)
        self._replies.arrived(record.uid, now)

    def _usage(self, link: Link, usages: object) -> None:
        """Note what some running jobs use now. Their info shows it; it is no event."""
        if not isinstance(usages, list):
            raise ProtocolError("jobs must be a list")
        for usage in usages:
            try:
                uid, cpu_seconds, rss_bytes = read_usage(usage)
            except ProtocolError as error:
                self._env.malformed(link.path, error)  # The other jobs are taken all the same.
                continue
            entry = self._ledger.table.get(uid)
            if entry is not None and entry.connection == link.connection and not entry.ended:
                entry.usage = (cpu_seconds, rss_bytes)

    def _sandboxes(self, link: Link, sizes: object) -> None:
        """Note how large some sandboxes are now."""
        if not isinstance(sizes, list):
            raise ProtocolError("jobs must be a list")
        for wire in sizes:
            try:
                uid, size = read_sandbox(wire)
            except ProtocolError as error:
                self._env.malformed(link.path, error)  # The other jobs are taken all the same.
                continue
            entry = self._ledger.table.get(uid)
            own = entry is not None and entry.connection == link.connection and self._ledger.table.is_counted(uid)
            if entry is not None and own and not entry.removed:
                self._ledger.table.accounts.measured(uid, entry.owner, size)

    def _removed(self, link: Link, wire: object, now: float) -> None:
        record = read_record(wire, link.connection)
        entry = self._ledger.table.get(record.uid)
        if entry is not None and entry.connection == link.connection and not entry.removed:
            self._ledger.close(entry, record, "")
            self._replies.arrived(record.uid, now)

    def _wanted(self, link: Link, uid: str, value: dict[str, Any], now: float) -> None:
        """Take a job that was unwanted, and that another router has created for the same key."""
        try:
            self._take(link, read_reply(value, link.connection, uid), now, listed=False)
        except ProtocolError as problem:
            self._env.malformed(link.path, problem)
