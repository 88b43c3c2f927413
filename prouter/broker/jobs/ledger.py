"""The one place where jobs change: table, store, events, waits and workers are told together, and in this order.

Also keeps what is known of connections that jobs belong to, for as long as one of their jobs is remembered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prouter.broker.base.env import Env
from prouter.broker.jobs.entry import Entry, packed_size
from prouter.broker.jobs.events import EventLog
from prouter.broker.jobs.table import JobTable
from prouter.broker.links.connection_info import job_facts, job_place
from prouter.broker.links.hello import SERVER, AgentInfo
from prouter.broker.links.link import Link
from prouter.errors import NotFound, ProtocolError
from prouter.fabric.frames import pack_body
from prouter.jobs import JobRecord

__all__ = ["EVENTS", "Ledger", "PeerInfo"]

log = logging.getLogger("prouter.broker")

EVENTS = 4096
"""Events kept, in memory and in the store."""
_TRIM = 64
"""Events written between deletions of old ones."""


_SAVE = """
    INSERT OR REPLACE INTO jobs
        (uid, connection, agent, name, created_at, state, revision, lost, removal, ended_at, record, event)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class PeerInfo(NamedTuple):
    """What is remembered of a connection."""

    mode: str
    info: AgentInfo


class Ledger:
    """See the module's docstring.

    Args:
        tell: sends an event to every worker.
        ended: called with every job that ended or was removed.
        unneeded: called with the connection uid when the last job of a connection is removed.
        last_event: the last event id that may have been given before.
        events: the last events of the broker before, with their ids.
    """

    def __init__(
        self,
        env: Env,
        *,
        tell: Callable[[str, dict[str, Any]], None],
        ended: Callable[[Entry], None],
        unneeded: Callable[[str], None],
        last_event: int = 0,
        events: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        self.table = JobTable()
        self.events = EventLog(EVENTS, last_event, env.wall(), kept=events)
        self.peers: dict[str, PeerInfo] = {}
        self.changes = 0
        """How many changes of jobs there were."""
        self._gone: set[str] = set()
        self._env = env
        self._tell = tell
        self._ended = ended
        self._unneeded = unneeded

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, connection: str, job: str) -> Entry:
        """The job, removed ones included; an empty `connection` matches any.

        Raises:
            NotFound: no such connection, or no such job on it.
        """
        entry = self.table.get(job)
        if connection and connection not in self.peers:
            raise NotFound(f"connection '{connection}' is not found")
        if entry is None or (connection and entry.connection != connection):
            raise NotFound(f"job '{job}' is not found", job=job)
        return entry

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
        """The job as clients see it; `record` is shown instead of its own."""
        wire = record.to_wire() if record is not None else entry.wire
        return {**job_facts(wire), **self._place(entry), "confirmed": entry.confirmed}

    def listed(self, entries: Iterable[Entry], most: int) -> tuple[bytes, int]:
        """Jobs as clients see them: JSON objects, commas between them; and how many of them there are.

        Args:
            most: bytes after which no other job is begun; the first one always is there.
        """
        size = 0
        parts: list[str] = []
        places: dict[tuple[str, str], str] = {}
        for entry in entries:
            where = (entry.connection, entry.agent)
            place = places.get(where)
            if place is None:
                place = places[where] = _json(self._place(entry))[1:]
            facts = {**job_facts(entry.wire), "confirmed": entry.confirmed}
            part = f"{_json(facts)[:-1]},{place}"
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
        """What a broker before knew of a connection."""
        self.peers[connection] = peer
        if gone:
            self._gone.add(connection)
            self._forget_connection(connection)

    # -- writing ------------------------------------------------------------------------------------------------

    def meet(self, link: Link, address: tuple[str, str] | None = None) -> None:
        """Remember a link, so that it is known after a restart and as long as its jobs are."""
        peer = PeerInfo(link.mode, link.info)
        known = self.peers.get(link.connection) if link.connection not in self._gone else None
        self._gone.discard(link.connection)
        self.peers[link.connection] = peer
        if known != peer or address is not None:
            self.write_connection(link.connection, link.since, address)

    def part(self, link: Link) -> None:
        """A link is gone: remember it only for its jobs' sake."""
        self._gone.add(link.connection)
        self._env.store.submit("UPDATE connections SET gone = 1 WHERE uid = ?", link.connection)
        self._forget_connection(link.connection)

    def apply(self, record: JobRecord, agent: str, *, announced: bool = False) -> Entry | None:
        """What an agent says of a job; the job if anything changed. `announced`: see `JobTable.apply`.

        Raises:
            ProtocolError: its connection has no room for a job, or for so long a record.
        """
        self._check_room(record)
        entry = self.table.apply(record, agent, self._stamp(), announced=announced)
        if entry is not None:
            self._changed(entry, "job")
        return entry

    def _check_room(self, record: JobRecord) -> None:
        if record.ended:
            return
        bounds, table, known = self._env.settings.bounds, self.table, self.table.get(record.uid)
        live = known is not None and not known.ended
        if not live and len(table.live(record.connection)) >= bounds.connection_jobs:
            raise ProtocolError(f"connection '{record.connection}' has {bounds.connection_jobs} jobs already")
        more = packed_size(record) - (known.size if live and known is not None else 0)
        if more > 0 and table.live_bytes(record.connection) + more > bounds.connection_bytes:
            raise ProtocolError(f"the jobs of connection '{record.connection}' have {bounds.connection_bytes} bytes")

    def lose(self, connection: str, uids: set[str], reason: str) -> None:
        """The agent of these jobs is gone, and they with it."""
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
        """Write down a connection, if it is still remembered; `address` is where and with which token it is dialled."""
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
        """Write down every job and event again, one for each step; those that come meanwhile are written anyway."""
        for uid in [entry.uid for entry in self.table]:
            entry = self.table.get(uid)
            if entry is not None:
                self._save(entry)
                yield
        for number, packed in self.events.all():
            self._env.store.submit("INSERT OR REPLACE INTO events (id, body) VALUES (?, ?)", number, packed)
            yield

    def when_written(self, done: Callable[[float], None]) -> None:
        """Call ``done(now)`` once everything so far is written down."""
        self._env.store.submit("SELECT 1", done=done)

    def removing(self, entry: Entry, removal: str, done: Callable[[float], None]) -> None:
        """The call `removal` is about to remove the job; `done` is called once that is written down.

        A broker that comes after a crash then knows the call's repeat from a second removal, also if it hears of the
        removal from the agent first.
        """
        entry.removal = removal
        self._env.store.submit("UPDATE jobs SET removal = ? WHERE uid = ?", removal, entry.uid, done=done)

    def close(self, entry: Entry, before: JobRecord, removal: str) -> None:
        """The job was removed by the call `removal`, or by its agent; `before` is what it was until then."""
        self.table.close(entry, before, removal, self._stamp())
        self._changed(entry, "job.removed")
        if not self.table.kept(before.connection):
            self._unneeded(before.connection)

    def forget(self, entry: Entry) -> None:
        """The history has no room for the job."""
        connection = entry.connection
        self.table.forget(entry)
        self._env.store.submit("DELETE FROM jobs WHERE uid = ?", entry.uid)
        if not self.table.kept(connection):
            self._unneeded(connection)
        self._forget_connection(connection)

    def agent_changed(self, link: Link, change: str) -> None:
        """News of an agent for whoever follows events."""
        self._publish("agent", {"connection": link.connection, "agent": link.agent, "change": change})

    def _forget_connection(self, connection: str) -> None:
        if connection in self._gone and not self.table.remembered(connection):
            self._gone.discard(connection)
            self.peers.pop(connection, None)
            self._env.store.submit("DELETE FROM connections WHERE uid = ?", connection)

    def _stamp(self) -> float:
        return self._env.steady.stamp(self._env.now)

    def _changed(self, entry: Entry, name: str) -> None:
        self.changes += 1
        self._save(entry)
        self._publish(name, {"record": entry.record.to_wire()})
        if entry.ended:
            self._ended(entry)

    def _publish(self, name: str, body: dict[str, Any]) -> None:
        """An event for workers, and for those who ask later, the next broker's clients among them."""
        told, packed = self.events.append(name, body, self._env.wall())
        self._env.store.submit("INSERT OR REPLACE INTO events (id, body) VALUES (?, ?)", self.events.last, packed)
        if not self.events.last % _TRIM:
            self._env.store.submit("DELETE FROM events WHERE id < ?", self.events.first)
        self._tell(name, told)

    def _save(self, entry: Entry) -> None:
        self._env.store.submit(
            _SAVE,
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
        )


_json = json.JSONEncoder(separators=(",", ":")).encode
