"""The one place where jobs change: table, store, events and workers, in this order.

The ledger also keeps what is known of a connection for as long as one of its jobs is in the table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prouter.broker.base.env import Env
from prouter.broker.jobs.entry import Entry, packed_size
from prouter.broker.jobs.events import EventLog
from prouter.broker.jobs.stored_history import StoredHistory
from prouter.broker.jobs.table import JobTable
from prouter.broker.links.connection_info import job_facts, job_place
from prouter.broker.links.hello import SERVER, AgentInfo
from prouter.broker.links.link import Link
from prouter.errors import NotFound, ProtocolError
from prouter.fabric.frames import pack_body
from prouter.jobs import JobRecord, Phase, Reason

__all__ = ["EVENTS", "SAVE_JOB", "Ledger", "PeerInfo"]

log = logging.getLogger("prouter.broker")

EVENTS = 4096
"""Events that are kept, in memory and in the store."""
_TRIM = 64
"""Events that are stored between two deletions of old ones."""


SAVE_JOB = """
    INSERT OR REPLACE INTO jobs
        (uid, connection, agent, name, created_at, state, revision, lost, removal, ended_at, record, event,
         created, size, owner, key)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class PeerInfo(NamedTuple):
    """What the broker remembers of a connection."""

    mode: str
    info: AgentInfo


class Ledger:
    """Jobs, their connections, and the log of events.

    Args:
        tell: sends an event to every worker.
        ended: called with every job that ends or is removed.
        unneeded: called with the uid of a connection whose last job was removed.
        history: the jobs that have ended.
        last_event: the last event id that an earlier broker may have given.
        events: the last events of an earlier broker, with their ids.
    """

    def __init__(
        self,
        env: Env,
        *,
        tell: Callable[[str, dict[str, Any]], None],
        ended: Callable[[Entry], None],
        unneeded: Callable[[str], None],
        history: StoredHistory,
        last_event: int = 0,
        events: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        self.table = JobTable(history)
        self.events = EventLog(EVENTS, last_event, env.wall(), kept=events)
        self.peers: dict[str, PeerInfo] = {}
        self.on_change: Callable[[], None] = _nothing
        """Called when a job has changed, before anybody is told of it."""
        self.position: Callable[[str], int | None] = _nowhere
        """Tells a job's place in the router's queue."""
        self.will_start: Callable[[str], bool] = bool
        """Tells whether the router starts a job by itself."""
        self.is_up: Callable[[str], bool] = bool
        """Tells whether the agent of a connection can be reached."""
        self._gone: set[str] = set()
        self._env = env
        self._tell = tell
        self._ended = ended
        self._unneeded = unneeded

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, connection: str, job: str) -> Entry:
        """The job, also if it was removed; an empty `connection` matches any.

        Raises:
            NotFound: no such connection, or no such job on it.
            Overloaded: the database cannot be read, and may have the job.
        """
        entry = self.table.look(job)
        if entry is not None and (not connection or connection in (entry.connection, entry.client)):
            return entry
        if connection and connection not in self.peers:
            raise NotFound(f"connection '{connection}' is not found")
        raise NotFound(f"job '{job}' is not found", job=job)

    def existing(self, connection: str, job: str) -> Entry:
        """The job, unless it was removed.

        Raises:
            NotFound: no such connection or job, or it was removed.
        """
        entry = self.find(connection, job)
        if entry.removed:
            raise NotFound(f"job '{job}' is not found: it was removed", job=job, state="CLOSED")
        return entry

    def info(self, entry: Entry, record: JobRecord | None = None) -> dict[str, Any]:
        """The job as clients see it.

        Args:
            record: shown instead of the job's own.
        """
        wire = record.to_wire() if record is not None else entry.wire
        return {**self._facts(entry, wire), **self._place(entry)}

    def _facts(self, entry: Entry, wire: dict[str, Any]) -> dict[str, Any]:
        """What clients see of a job but its agent."""
        facts = job_facts(wire, up=entry.client == entry.connection or self.is_up(entry.connection))
        if entry.dormant and self.will_start(entry.uid):
            facts["phase"] = Phase.STARTING.value
        if entry.stopping and facts["phase"] is not None and not entry.ended:
            facts["phase"] = Phase.STOPPING.value
        return {**facts, "position": self.position(entry.uid), "confirmed": entry.confirmed}

    def listed(self, entries: Iterable[Entry], most: int) -> tuple[bytes, int]:
        """Jobs as clients see them, as JSON objects with commas between them, and the number of them.

        Args:
            most: bytes after which no other job is added; the first one is always there.
        """
        size = 0
        parts: list[str] = []
        places: dict[tuple[str, str], str] = {}
        for entry in entries:
            where = (entry.connection, entry.agent)
            place = places.get(where)
            if place is None:
                place = places[where] = _json(self._place(entry))[1:]
            part = f"{_json(self._facts(entry, entry.wire))[:-1]},{place}"
            size += len(part) + 1
            if parts and size > most:
                break
            parts.append(part)
        return ",".join(parts).encode("ascii"), len(parts)

    def _place(self, entry: Entry) -> dict[str, Any]:
        peer = self.peers.get(entry.connection)
        return job_place(
            agent=peer.info if peer is not None else None,
            agent_uid=entry.agent,
            mode=peer.mode if peer is not None else SERVER,
            router=self._env.settings.auth,
        )

    def restore(self, connection: str, peer: PeerInfo, *, gone: bool) -> None:
        """Take over a connection that an earlier broker stored.

        Args:
            gone: whether its agent does not come back.
        """
        self.peers[connection] = peer
        if gone:
            self._gone.add(connection)
            self._forget_connection(connection)

    # -- writing ------------------------------------------------------------------------------------------------

    def meet(self, link: Link, address: tuple[str, str] | None = None) -> None:
        """Remember a link: it is known after a restart, and for as long as one of its jobs is."""
        peer = PeerInfo(link.mode, link.info)
        known = self.peers.get(link.connection) if link.connection not in self._gone else None
        self._gone.discard(link.connection)
        self.peers[link.connection] = peer
        if known != peer or address is not None:
            self.write_connection(link.connection, link.since, address)

    def part(self, link: Link) -> None:
        """Forget a link that is gone once none of its jobs is in the table."""
        self._gone.add(link.connection)
        self._env.store.submit("UPDATE connections SET gone = 1 WHERE uid = ?", link.connection)
        self._forget_connection(link.connection)

    def apply(self, record: JobRecord, agent: str, *, listed: bool = False) -> Entry | None:
        """Take a job's record from its agent; return the job if anything changed.

        Args:
            listed: see `JobTable.apply`.

        Raises:
            ProtocolError: its connection has too many jobs, or too many bytes of records.
        """
        self._check_space(record)
        entry = self.table.apply(record, agent, self._stamp(), listed=listed)
        if entry is not None:
            self._changed(entry, "job")
        return entry

    def _check_space(self, record: JobRecord) -> None:
        if record.ended:
            return
        bounds, table, known = self._env.settings.bounds, self.table, self.table.get(record.uid)
        live = known is not None and not known.ended
        if not live and len(table.live(record.connection)) >= bounds.connection_jobs:
            raise ProtocolError(
                f"connection '{record.connection}' has {bounds.connection_jobs} jobs already, which is the most"
            )
        more = packed_size(record) - (known.size if live and known is not None else 0)
        if more > 0 and table.tally.live_bytes(record.connection) + more > bounds.connection_bytes:
            raise ProtocolError(
                f"the records of connection '{record.connection}' have {bounds.connection_bytes} bytes already"
            )

    def lose(self, connection: str, uids: set[str], reason: str) -> None:
        """Mark jobs as lost: their agent is gone, or does not know them."""
        for uid in sorted(uids):
            entry = self.table.get(uid)
            if entry is not None and not entry.ended:
                self.table.lose(entry, reason, self._stamp())
                log.warning("event=job_lost job=%s link=%s reason=%r", uid, connection, reason)
                self._changed(entry, "job")

    @property
    def connections(self) -> list[str]:
        """Uids of the connections that are remembered."""
        return list(self.peers)

    def write_connection(self, connection: str, since: float, address: tuple[str, str] | None) -> None:
        """Store a connection that is still remembered.

        Args:
            address: where the router dials it, and with which token; None if the agent dialled.
        """
        peer = self.peers.get(connection)
        if peer is not None:
            body = {"mode": peer.mode, "info": peer.info.to_wire(), "since": since, "address": address}
            self._env.store.submit(
                "INSERT OR REPLACE INTO connections (uid, gone, body) VALUES (?, ?, ?)",
                connection,
                int(connection in self._gone),
                pack_body(body),
            )

    def write_all(self) -> Iterator[None]:
        """Store every job and event again, one for each step. What changes meanwhile is stored as usual."""
        for uid in [entry.uid for entry in self.table]:
            entry = self.table.get(uid)
            if entry is not None:
                self._save(entry)
                yield
        for entry in self.table.stored():
            self._save(entry)
            yield
        for number, packed in self.events.all():
            self._env.store.submit("INSERT OR REPLACE INTO events (id, body) VALUES (?, ?)", number, packed)
            yield

    def when_written(self, done: Callable[[float], None]) -> None:
        """Call ``done(now)`` once all that was submitted to the store so far is committed."""
        self._env.store.submit("SELECT 1", done=done)

    def rests(self, entry: Entry) -> bool:
        """Whether a job does not run and will not, unless a client starts it."""
        return entry.dormant and not self.will_start(entry.uid)

    def put(self, record: JobRecord) -> Entry:
        """Add a job that is in the router's queue, and that no agent has."""
        entry = self.table.apply(record, "", self._stamp())
        if entry is None:
            raise RuntimeError(f"job {record.uid} is in the table already")
        self._changed(entry, "job")
        return entry

    def end(self, entry: Entry, place: str, reason: Reason, error: str) -> None:
        """End a job that no agent has. Arguments as of `JobTable.end`."""
        self.table.end(entry, place, reason, error, self._stamp())
        log.warning("event=queued_job_ended job=%s reason=%s error=%r", entry.uid, reason.value, error)
        self._changed(entry, "job")

    def removing(self, entry: Entry, removal: str, done: Callable[[float], None]) -> None:
        """Store that the call `removal` is about to remove the job, then call ``done(now)``.

        After a crash, the next broker can then tell the repeated call from a second removal, also if the agent tells of
        the removal first.
        """
        entry.removal = removal
        self.table.keep(entry)
        self._env.store.submit(
            "UPDATE jobs SET removal = ? WHERE uid = ?",
            removal,
            entry.uid,
            done=done,
            committed=self.table.writing(entry),
        )

    def close(self, entry: Entry, before: JobRecord, removal: str) -> None:
        """Note that a job was removed. Arguments as of `Entry.close`."""
        self.table.close(entry, before, removal, self._stamp())
        self._changed(entry, "job.removed")
        if not self.table.tally.kept(before.connection):
            self._unneeded(before.connection)

    def forget(self, entry: Entry) -> None:
        """Drop a job that the history has no space for."""
        connection = entry.connection
        self.table.forget(entry)
        self._env.store.submit("DELETE FROM jobs WHERE uid = ?", entry.uid, committed=self.table.writing(entry))
        if not self.table.tally.kept(connection):
            self._unneeded(connection)
        self._forget_connection(connection)

    def agent_changed(self, link: Link, change: str) -> None:
        """Publish an event about an agent."""
        self._publish("agent", {"connection": link.connection, "agent": link.agent, "change": change})

    def _forget_connection(self, connection: str) -> None:
        if connection in self._gone and not self.table.tally.remembered(connection):
            self._gone.discard(connection)
            self.peers.pop(connection, None)
            self._env.store.submit("DELETE FROM connections WHERE uid = ?", connection)

    def _stamp(self) -> float:
        return self._env.steady.stamp(self._env.now)

    def _changed(self, entry: Entry, name: str) -> None:
        self.on_change()
        self._save(entry)
        self._publish(name, {"record": entry.told})
        if entry.ended:
            self._ended(entry)

    def _publish(self, name: str, body: dict[str, Any]) -> None:
        """Send an event to workers, and keep it for clients that ask later, also after a restart."""
        told, packed = self.events.append(name, body, self._env.wall())
        self._env.store.submit("INSERT OR REPLACE INTO events (id, body) VALUES (?, ?)", self.events.last, packed)
        if not self.events.last % _TRIM:
            self._env.store.submit("DELETE FROM events WHERE id < ?", self.events.first)
        self._tell(name, told)

    def _save(self, entry: Entry) -> None:
        self._env.store.submit(
            SAVE_JOB,
            entry.uid,
            entry.connection,
            entry.agent,
            entry.name,
            entry.created_at,
            entry.state.value,
            entry.revision,
            int(entry.lost),
            entry.removal,
            entry.ended_at,
            entry.packed,
            self.events.last + 1,
            entry.place[0],
            entry.size,
            entry.owner,
            entry.key,
            committed=self.table.writing(entry),
        )
        if entry.ended:
            self._env.store.hurry()  # Clients that wait for the end hear of it now.


def _nowhere(_uid: str) -> int | None:
    """The default of `Ledger.position`."""
    return None


def _nothing() -> None:
    """The default of `Ledger.on_change`."""


_json = json.JSONEncoder(separators=(",", ":")).encode
