"""The job table: what the agents last said of their jobs, and the history of those that ended.

Agents are the authority: news with a lower revision is stale, and a job given up for lost comes back to life when its
agent does. Ended jobs are kept packed (they are many and seldom read) until the history is full.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from prouter.broker.index import JobIndex, Listed
from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import JobRecord, Reason, State

__all__ = ["Entry", "JobTable"]


class Entry:
    """One job.

    Attributes:
        agent: uid of its agent.
        revision: of the newest news.
        removed: whether it was removed; its record is then as it was before.
        removal: id of the call that removed it.
        confirmed: whether its agent spoke of it since this broker started (or it has ended).
        lost: whether it was given up because its agent is gone.
        ended_at: when it ended, seconds since the epoch; None while it is alive.
    """

    __slots__ = (
        "_packed",
        "_record",
        "agent",
        "confirmed",
        "ended_at",
        "lost",
        "removal",
        "removed",
        "revision",
        "uid",
    )

    def __init__(self, record: JobRecord, agent: str) -> None:
        self.agent = agent
        self.confirmed = True
        self.removed = False
        self.removal = ""
        self.ended_at: float | None = None
        self.uid = record.uid
        self.set(record)

    @classmethod
    def restored(
        cls, record: JobRecord, packed: bytes, agent: str, removed: bool, removal: str, ended_at: float | None
    ) -> Entry:
        """A job as it was stored."""
        entry = cls.__new__(cls)
        entry.uid, entry.agent = record.uid, agent
        entry.removed, entry.removal, entry.ended_at = removed, removal, ended_at
        entry.revision = record.revision
        entry.lost = record.reason is Reason.AGENT_LOST
        entry.confirmed = record.ended or removed
        entry._record, entry._packed = (None, packed) if entry.confirmed else (record, b"")
        return entry

    def set(self, record: JobRecord) -> None:
        """Take newer news."""
        self.revision = record.revision
        self.lost = record.reason is Reason.AGENT_LOST
        self._record: JobRecord | None = record
        self._packed = b""
        if record.ended:
            self.seal()

    def seal(self) -> None:
        """Keep the record packed only: it will hardly be read."""
        if self._record is not None:
            self._packed = pack_body(self._record.to_wire())
            self._record = None

    @property
    def record(self) -> JobRecord:
        """The record, with the state CLOSED when it was removed."""
        record = self.last_record
        return replace(record, state=State.CLOSED) if self.removed else record

    @property
    def last_record(self) -> JobRecord:
        """The record as it was before a removal."""
        return self._record if self._record is not None else JobRecord.from_wire(unpack_body(self._packed))

    @property
    def packed(self) -> bytes:
        """The record as it was before a removal, packed for storing."""
        return self._packed or pack_body(self.last_record.to_wire())

    @property
    def ended(self) -> bool:
        """Whether it will never run again (unless a lost agent returns)."""
        return self.removed or self._record is None


class JobTable:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._live: dict[str, set[str]] = {}
        self._kept: dict[str, set[str]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._remembered: Counter[str] = Counter()
        self.index = JobIndex()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def ended_count(self) -> int:
        """How many jobs the history holds."""
        return len(self._ended)

    def get(self, uid: str) -> Entry | None:
        """The job with this uid."""
        return self._entries.get(uid)

    def live(self, connection: str) -> set[str]:
        """Uids of the jobs of a connection that have not ended."""
        return self._live.get(connection, set())

    def kept(self, connection: str) -> set[str]:
        """Uids of the jobs of a connection that were not removed."""
        return self._kept.get(connection, set())

    def remembered(self, connection: str) -> int:
        """How many jobs of a connection are in the table, removed ones included."""
        return self._remembered[connection]

    def load(self, entries: Iterable[tuple[Entry, JobRecord]]) -> None:
        """Fill an empty table; nothing alive is confirmed until its agent is back."""
        listed = []
        ended: list[Entry] = []
        for entry, record in entries:
            self._entries[entry.uid] = entry
            self._remembered[record.connection] += 1
            self._count(entry, record.connection)
            entry.confirmed = entry.ended
            if entry.ended:
                ended.append(entry)
            listed.append(_listed(entry, record))
        for entry in sorted(ended, key=lambda entry: entry.ended_at or 0.0):
            self._ended[entry.uid] = None
        self.index.load(listed)

    def apply(self, record: JobRecord, agent: str, wall: float) -> Entry | None:
        """Take what an agent says of a job; the job if that changed anything anybody can see, else None."""
        entry = self._entries.get(record.uid)
        if entry is None:
            entry = self._entries[record.uid] = Entry(record, agent)
            self._remembered[record.connection] += 1
            self._settle(entry, record, wall)
            return entry
        if entry.removed or record.revision < entry.revision:
            return None
        returns = entry.lost and record.reason is not Reason.AGENT_LOST
        if record.revision == entry.revision and not returns:
            entry.confirmed = True
            return None
        entry.set(record)
        entry.confirmed = True
        self._settle(entry, record, wall)
        return entry

    def lose(self, entry: Entry, reason: str, wall: float) -> None:
        """Its agent is gone, and the job with it."""
        record = replace(
            entry.record,
            state=State.FINISHED,
            reason=Reason.AGENT_LOST,
            error=f"the job's agent is gone: {reason}",
            finished_at=wall,
            endpoint=None,
            pid=None,
        )
        entry.set(record)
        entry.confirmed = True
        self._settle(entry, record, wall)

    def close(self, entry: Entry, before: JobRecord, removal: str, wall: float) -> None:
        """The job was removed; `before` is what it was until then."""
        if before.revision >= entry.revision:
            entry.set(before)
        entry.removed = True
        entry.removal = removal
        entry.seal()
        self._settle(entry, before, wall)

    def forget(self, entry: Entry) -> None:
        """Drop the job altogether."""
        connection = entry.last_record.connection
        del self._entries[entry.uid]
        self._ended.pop(entry.uid, None)
        self.index.remove(entry.uid)
        self._remembered[connection] -= 1
        if not self._remembered[connection]:
            del self._remembered[connection]
        _discard(self._live, connection, entry.uid)
        _discard(self._kept, connection, entry.uid)

    def overdue(self, keep: int, ended_before: float) -> list[Entry]:
        """Jobs the history has no room for: the longest ended beyond `keep`, and those ended before that time."""
        found: list[Entry] = []
        surplus = len(self._ended) - keep
        for uid in self._ended:
            entry = self._entries[uid]
            if len(found) >= surplus and (entry.ended_at or 0.0) >= ended_before:
                break
            found.append(entry)
        return found

    def _settle(self, entry: Entry, record: JobRecord, wall: float) -> None:
        """Bring every index up to date."""
        if not entry.ended:
            entry.ended_at = None
            self._ended.pop(entry.uid, None)
        elif entry.uid not in self._ended:
            entry.ended_at = record.finished_at or wall
            self._ended[entry.uid] = None
        self._count(entry, record.connection)
        self.index.put(_listed(entry, record))

    def _count(self, entry: Entry, connection: str) -> None:
        if entry.ended:
            _discard(self._live, connection, entry.uid)
        else:
            self._live.setdefault(connection, set()).add(entry.uid)
        if entry.removed:
            _discard(self._kept, connection, entry.uid)
        else:
            self._kept.setdefault(connection, set()).add(entry.uid)


def _listed(entry: Entry, record: JobRecord) -> Listed:
    state = State.CLOSED if entry.removed else record.state
    return Listed(entry.uid, int(record.created_at * 1_000_000), state.value, entry.agent, record.name)


def _discard(sets: dict[str, set[str]], connection: str, uid: str) -> None:
    uids = sets.get(connection)
    if uids is not None:
        uids.discard(uid)
        if not uids:
            del sets[connection]
