"""The job table: the last record of every job, and the history of jobs that have ended.

Agents are the authority on their jobs. A record with a lower revision than the table's is stale. A job that was lost
lives again when its agent is back. The list that an agent sends when it links counts whatever its revisions: records of
an earlier path may have come from another peer, or from an agent process that knew more than the next one has found.
Ended jobs are kept packed until the history is full, because there are many and they are seldom read.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from sys import intern
from typing import Any

from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.index import JobIndex, Listed
from prouter.broker.jobs.owners import Accounts
from prouter.broker.jobs.taken import Taken
from prouter.jobs import JobRecord, Reason, State

__all__ = ["JobTable"]

_KEEPING = 600
"""Bytes of memory that a job takes in addition to its record."""


class JobTable:
    """All jobs, with the sets and sums by which the broker bounds and finds them."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._live: dict[str, set[str]] = {}
        self._running: dict[str, set[str]] = {}
        self._kept: dict[str, set[str]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._remembered: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        """By connection, of the jobs that are alive; of the history with an empty text."""
        self._by_key: dict[str, str] = {}
        """By hash of the idempotency key, uid of the job that it gave."""
        self.index = JobIndex()
        self.accounts = Accounts()
        self.taken = Taken()
        self.owner_of: Callable[[JobRecord], str | None] = _claimed
        """Tells who owns a job that the table does not have."""
        self.is_ours: Callable[[str], bool] = bool
        """Tells whether this router has created a job. No agent can put others on somebody's account."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def ended_count(self) -> int:
        """How many jobs the history holds."""
        return len(self._ended)

    @property
    def ended_bytes(self) -> int:
        """Bytes of the history: records, and what each job takes in addition."""
        return self._bytes[""]

    def live_bytes(self, connection: str) -> int:
        """Bytes of the records of a connection's jobs that have not ended."""
        return self._bytes[connection]

    def get(self, uid: str) -> Entry | None:
        """The job with this uid."""
        return self._entries.get(uid)

    def made_by(self, key: str) -> Entry | None:
        """The job that an idempotency key with this hash gave, at this router or at another one."""
        entry = self._entries.get(self._by_key.get(key, ""))
        return entry if entry is not None and entry.key == key else None

    def live(self, connection: str) -> set[str]:
        """Uids of a connection's jobs that have not ended."""
        return self._live.get(connection, set())

    def running(self, connection: str) -> int:
        """How many of a connection's jobs run; those whose server is awaited count."""
        return len(self._running.get(connection, ()))

    def kept(self, connection: str) -> set[str]:
        """Uids of a connection's jobs that were not removed."""
        return self._kept.get(connection, set())

    def remembered(self, connection: str) -> int:
        """How many of a connection's jobs are in the table, removed ones included."""
        return self._remembered[connection]

    def load(self, entries: Iterable[Entry]) -> None:
        """Fill an empty table with stored jobs. Those alive are confirmed once their agent has told of them."""
        listed = []
        ended: list[Entry] = []
        for entry in entries:
            self._entries[entry.uid] = entry
            self._remembered[entry.connection] += 1
            if entry.key is not None:
                self._note_key(entry)
            if entry.ended:
                ended.append(entry)
            else:
                self._count(entry)
            listed.append(_listed(entry))
        self._load_ended(ended)
        self.index.load(listed)

    def _load_ended(self, ended: list[Entry]) -> None:
        """Do for a long history what `_count` does for one job: nobody's account has anything of theirs yet."""
        ended.sort(key=lambda entry: entry.ended_at or 0.0)
        self._ended.update(dict.fromkeys(entry.uid for entry in ended))
        size = 0
        for entry in ended:
            entry.counted = entry.size
            size += entry.size + _KEEPING
            if not entry.removed:
                self._kept.setdefault(entry.connection, set()).add(entry.uid)
        if size:
            self._bytes[""] += size

    def apply(self, record: JobRecord, agent: str, wall: float, *, listed: bool = False) -> Entry | None:
        """Take a job's record from its agent; return the job if anything visible changed, else None.

        Args:
            agent: uid of the agent.
            wall: time of the router, seconds since the epoch. The age of an ended job counts from it, because the
                agent's clock may be wrong.
            listed: whether the record is in the list that an agent sends when it links. Such a record counts
                whatever its revision.
        """
        entry = self._entries.get(record.uid)
        if entry is None:
            record = replace(record, owner=self.owner_of(record))
            entry = self._entries[record.uid] = Entry.heard(record, agent)
            self._remembered[record.connection] += 1
            self._note_key(entry)
            self._settle(entry, wall)
            return entry
        moved = entry.connection != record.connection
        if entry.removed or (record.revision < entry.revision and not (listed or moved)):
            return None
        if entry.client is not None:  # It was in the queue before an agent had it.
            record = replace(record, client=entry.client, created_at=entry.created_at)
        if record.owner != entry.owner:
            record = replace(record, owner=entry.owner)  # an agent must not give a job to somebody else
        returns = entry.lost and record.reason is not Reason.AGENT_LOST
        renamed = entry.agent != agent
        differs = record.revision != entry.revision or (listed and record != entry.last_record)
        if not (differs or returns or renamed or moved):
            entry.confirmed = True
            return None
        if moved:
            self._move(entry, record.connection)
        entry.agent = intern(agent)
        key = entry.key
        entry.set(record)
        self._note_key(entry, key)
        entry.confirmed = True
        self._settle(entry, wall)
        return entry

    def lose(self, entry: Entry, reason: str, wall: float) -> None:
        """Mark a job as lost: its agent is gone, or does not know it."""
        self._finish(entry, Reason.AGENT_LOST, f"the job's agent is gone: {reason}", wall)

    def end(self, entry: Entry, place: str, reason: Reason, error: str, wall: float) -> None:
        """End a job that no agent has, or has any more: it waited too long in the queue, or cannot be started.

        Args:
            place: the queue's connection, which the job is on from now on.
        """
        if entry.connection != place:
            self._move(entry, place)
        self._finish(entry, reason, error, wall)

    def _finish(self, entry: Entry, reason: Reason, error: str, wall: float) -> None:
        last = entry.last_record
        ended: dict[str, Any] = {"state": State.FINISHED, "reason": reason, "error": error, "finished_at": wall}
        connection = entry.connection
        entry.set(replace(last, **ended, connection=connection, queue=None, endpoint=None, pid=None))
        entry.confirmed = True
        self._settle(entry, wall)

    def _move(self, entry: Entry, connection: str) -> None:
        """Take a job off its connection and put it on another one."""
        for sets in (self._live, self._running, self._kept):
            _discard(sets, entry.connection, entry.uid)
        self._forget_one(entry.connection)
        entry.connection = intern(connection)
        self._remembered[connection] += 1

    def close(self, entry: Entry, before: JobRecord, removal: str, wall: float) -> None:
        """Mark a job as removed. Arguments as of `Entry.close`."""
        key = entry.key
        entry.close(before, removal)
        self._note_key(entry, key)
        entry.confirmed = True
        self._settle(entry, wall)

    def forget(self, entry: Entry) -> None:
        """Drop a job from the table."""
        del self._entries[entry.uid]
        if entry.key is not None and self._by_key.get(entry.key) == entry.uid:
            del self._by_key[entry.key]
        self._weigh(entry, "", 0)
        self.accounts.forget(entry.uid)
        self.taken.give_back(entry.uid)
        self._ended.pop(entry.uid, None)
        self.index.remove(entry.uid)
        _discard(self._live, entry.connection, entry.uid)
        _discard(self._running, entry.connection, entry.uid)
        _discard(self._kept, entry.connection, entry.uid)
        self._forget_one(entry.connection)

    def _forget_one(self, connection: str) -> None:
        self._remembered[connection] -= 1
        if not self._remembered[connection]:
            del self._remembered[connection]

    def overdue(self, keep: int, keep_bytes: int, ended_before: float, most: int) -> list[Entry]:
        """Jobs that the history has no space for, those that ended first at the beginning.

        Args:
            keep: jobs that the history may hold.
            keep_bytes: bytes that it may hold.
            ended_before: time before which jobs are too old, seconds since the epoch.
            most: return at most so many.
        """
        found: list[Entry] = []
        surplus, surplus_bytes = len(self._ended) - keep, self.ended_bytes - keep_bytes
        for uid in self._ended:
            entry = self._entries[uid]
            if len(found) == most or (
                len(found) >= surplus and surplus_bytes <= 0 and (entry.ended_at or 0.0) >= ended_before
            ):
                break
            found.append(entry)
            surplus_bytes -= entry.size + _KEEPING
        return found

    def _settle(self, entry: Entry, ended_at: float) -> None:
        """Bring every index up to date."""
        if not entry.ended:
            entry.ended_at = None
            self._ended.pop(entry.uid, None)
        elif entry.uid not in self._ended:
            entry.ended_at = ended_at
            self._ended[entry.uid] = None
        self._count(entry)
        self.index.put(_listed(entry))

    def _note_key(self, entry: Entry, before: str | None = None) -> None:
        """Note which key gave the job, `before` that another one. Of two jobs with the same key the first counts."""
        if before is not None and before != entry.key and self._by_key.get(before) == entry.uid:
            del self._by_key[before]
        if entry.key is not None and self.made_by(entry.key) is None:
            self._by_key[entry.key] = entry.uid

    def _weigh(self, entry: Entry, account: str, size: int) -> None:
        """Count a job's bytes for an account: its connection, or an empty text for the history. 0 removes it."""
        if entry.counted:
            self._bytes[entry.account] -= entry.counted + _KEEPING
            if not self._bytes[entry.account]:
                del self._bytes[entry.account]
        entry.account, entry.counted = account, size
        if size:
            self._bytes[account] += size + _KEEPING

    def _count(self, entry: Entry) -> None:
        self._weigh(entry, "" if entry.ended else entry.connection, entry.size)
        if self.is_ours(entry.uid):
            self.accounts.count(entry.uid, entry.owner, alive=not entry.ended, kept=not (entry.removed or entry.lost))
        if entry.ended:
            self.taken.give_back(entry.uid)
            _discard(self._live, entry.connection, entry.uid)
        else:
            self.taken.take(entry.uid, entry.connection, entry.resources)
            self._live.setdefault(entry.connection, set()).add(entry.uid)
        if entry.ended or entry.state is State.NEW:
            _discard(self._running, entry.connection, entry.uid)
        else:
            self._running.setdefault(entry.connection, set()).add(entry.uid)
        if entry.removed:
            _discard(self._kept, entry.connection, entry.uid)
        else:
            self._kept.setdefault(entry.connection, set()).add(entry.uid)


def _claimed(record: JobRecord) -> str | None:
    return record.owner


def _listed(entry: Entry) -> Listed:
    return Listed(int(entry.created_at * 1_000_000), entry.uid, entry.state.value, entry.agent, entry.name, entry.owner)


def _discard(sets: dict[str, set[str]], connection: str, uid: str) -> None:
    uids = sets.get(connection)
    if uids is not None:
        uids.discard(uid)
        if not uids:
            del sets[connection]
