"""The job table: the last record of every job, and the history of jobs that have ended.

Agents are the authority on their jobs. A record with a lower revision than the table's is stale. A job that was lost
lives again when its agent is back. The list that an agent sends when it links counts whatever its revisions: records of
an earlier path may have come from another peer, or from an agent process that knew more than the next one has found.

Jobs that have not ended are in memory. Others are there until the database has them as they are now, and are read from
it again when somebody asks for them (`StoredHistory`). A job is the same object for all who hold it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from heapq import merge
from sys import intern
from typing import Any
from weakref import WeakValueDictionary

from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.index import JobIndex, Listed
from prouter.broker.jobs.owners import Accounts
from prouter.broker.jobs.stored_history import Key, StoredHistory
from prouter.broker.jobs.taken import Taken
from prouter.broker.jobs.tally import KEEPING, Tally
from prouter.errors import Overloaded
from prouter.jobs import JobRecord, Reason, State

__all__ = ["JobTable"]

_ENDED = (State.FINISHED, State.CLOSED)
_FINISHED = State.FINISHED.value
_RECENT = 256
"""Jobs that were read last and need not be read again."""


class JobTable:
    """All jobs, with the sets and sums by which the broker bounds and finds them.

    Iteration gives the jobs in memory.
    """

    def __init__(self, history: StoredHistory) -> None:
        self.history = history
        self.index = JobIndex()
        self.tally = Tally()
        self.accounts = Accounts()
        self.taken = Taken()
        self.owner_of: Callable[[JobRecord], str | None] = _claimed
        """Tells who owns a job that the table does not have."""
        self.is_ours: Callable[[str], bool] = bool
        """Tells whether this router has created a job. No agent can put others on somebody's account."""
        self._entries: dict[str, Entry] = {}
        """In memory: those that have not ended, and those that the database does not have as they are."""
        self._live: dict[str, set[str]] = {}
        self._running: dict[str, set[str]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Those in memory that have ended."""
        self._by_key: dict[str, str] = {}
        """By hash of the idempotency key, uid of the job in memory that it gave."""
        self._read: WeakValueDictionary[str, Entry] = WeakValueDictionary()
        """Those that are in the database, and that somebody holds."""
        self._recent: deque[Entry] = deque(maxlen=_RECENT)
        self._absent = ""
        """The job that the database was asked for last, and did not have. A new job is looked up several times."""
        self._deleted: set[str] = set()
        """Those that are forgotten, and may be in the database still."""
        self._deleted_until = float("-inf")
        """End of the latest of these: the history is empty before."""
        self._unwritten: dict[str, int] = {}
        """Number of the last change of a job that has ended, until it is written."""
        self._writes = 0
        self._holds = history.copied

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return self.tally.states.total()

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, uid: str) -> Entry | None:
        """The job with this uid."""
        entry = self._entries.get(uid)
        if entry is not None or uid in self._deleted:
            return entry
        entry = self._read.get(uid)
        if entry is None and uid != self._absent:
            entry = self.history.get(uid)
            if entry is not None:
                self._recent.append(self._identify(entry))
            elif self.history.readable:
                self._absent = uid
        return entry

    def look(self, uid: str) -> Entry | None:
        """The job with this uid, for an answer that must be true.

        Raises:
            Overloaded: it is not in memory, and the database cannot be read.
        """
        entry = self.get(uid)
        if entry is None and not self.history.readable:
            raise Overloaded("the router cannot read its history of jobs", job=uid, retry_after=1)
        return entry

    def is_counted(self, uid: str) -> bool:
        """Whether a job is on its owner's account. Once it is, it stays until it has ended, whatever is_ours says."""
        return self.is_ours(uid) or self.accounts.knows(uid)

    def made_by(self, key: str) -> Entry | None:
        """The job that an idempotency key with this hash gave, at this router or at another one."""
        entry = self._entries.get(self._by_key.get(key, ""))
        if entry is not None and entry.key == key:
            return entry
        with closing(self.history.with_key(key)) as stored:
            return next(self._visible(stored), None)

    def live(self, connection: str) -> set[str]:
        """Uids of a connection's jobs that have not ended."""
        return self._live.get(connection, set())

    def running(self, connection: str) -> int:
        """How many of a connection's jobs run; those whose server is awaited count."""
        return len(self._running.get(connection, ()))

    def to_remove(self, connection: str) -> list[Entry]:
        """A connection's jobs that somebody asked to remove, and that were not removed."""
        uids = {uid for uid in self._live.get(connection, ()) if self._entries[uid].removal}
        uids.update(uid for uid in self._ended if self._entries[uid].connection == connection)
        found = map(self.get, sorted(uids | self.history.to_remove(connection)))
        return [entry for entry in found if entry is not None and entry.removal and not entry.removed]

    def newest(
        self, states: Collection[str], owner: str | None, agent: str | None, name: str | None, before: Key | None
    ) -> Generator[Entry, None, None]:
        """Jobs that fit, the newest first; arguments as of `JobIndex.newest`."""
        here = (self._entries[job.uid] for job in self.index.newest(states, owner, agent, name, before))
        ended = [state for state in _ENDED if state.value in (states or (_FINISHED,))]
        with ExitStack() as stack:
            stored = [
                stack.enter_context(closing(self.history.newest(state, owner, agent, name, before))) for state in ended
            ]
            yield from merge(here, *map(self._visible, stored), key=_place, reverse=True)

    def overdue(self, keep: int, keep_bytes: int, ended_before: float, most: int) -> list[Entry]:
        """Jobs that the history has no space for, those that ended first at the beginning.

        Args:
            keep: jobs that the history may hold.
            keep_bytes: bytes that it may hold.
            ended_before: time before which jobs are too old, seconds since the epoch.
            most: return at most so many.
        """
        found: list[Entry] = []
        surplus, surplus_bytes = self.tally.ended - keep, self.tally.ended_bytes - keep_bytes
        here = sorted((self._entries[uid] for uid in self._ended), key=_end)
        with closing(self.history.oldest(self._deleted_until)) as stored:
            for entry in merge(here, self._visible(stored), key=_end):
                if len(found) == most or (len(found) >= surplus and surplus_bytes <= 0 and _end(entry) >= ended_before):
                    break
                found.append(entry)
                surplus_bytes -= entry.size + KEEPING
        return found

    def _visible(self, stored: Iterable[Entry]) -> Iterator[Entry]:
        """Those of the stored jobs that are as the database has them."""
        for entry in stored:
            if entry.uid not in self._entries and entry.uid not in self._deleted:
                yield self._identify(entry)

    def _identify(self, stored: Entry) -> Entry:
        """The object for a job that was read."""
        entry = self._read.get(stored.uid)
        if entry is None:
            entry = self._read[stored.uid] = stored
            self.tally.known(entry)
        return entry

    # -- writing ------------------------------------------------------------------------------------------------

    def load(self, entries: Iterable[Entry]) -> None:
        """Fill an empty table with stored jobs that are alive. They are confirmed once their agent has told of them."""
        for connection, state, jobs, size in self.history.totals():
            self.tally.add_stored(connection, state, jobs, size)
        listed = []
        for entry in entries:
            self._entries[entry.uid] = entry
            if entry.key is not None:
                self._by_key.setdefault(entry.key, entry.uid)
            self._count(entry)
            listed.append(_listed(entry))
        self.index.load(listed)

    def writing(self, entry: Entry) -> Callable[[float], None] | None:
        """What to call once the job is stored as it is now; None if nothing has to be."""
        if not entry.ended and entry.uid not in self._deleted:
            return None
        self._writes += 1
        self._unwritten[entry.uid] = self._writes
        return partial(self._written, entry.uid, self._writes)

    def hold(self) -> None:
        """Keep all jobs in memory that are there: the database from which others are read does not get what changes."""
        self._holds = True
        self._unwritten.clear()

    def release(self) -> None:
        """Keep only those jobs in memory that have to be there: the history is read from the current database."""
        self._holds = False
        for uid in [*self._ended, *self._deleted]:
            if uid not in self._unwritten:
                self._let_go(uid)

    def stored(self) -> Iterator[Entry]:
        """Jobs that are only in the database. They may change between one and the next."""
        return self._visible(self.history.all())

    def keep(self, entry: Entry) -> None:
        """Keep a job in memory until `writing` says that it is stored: it is about to change."""
        self._settle(entry, 0.0)

    def _written(self, uid: str, write: int, _now: float) -> None:
        if self._unwritten.get(uid) == write:
            del self._unwritten[uid]
            if not self._holds:
                self._let_go(uid)

    def _let_go(self, uid: str) -> None:
        """Drop from memory what the database says as well."""
        self._deleted.discard(uid)
        if not self._deleted:
            self._deleted_until = float("-inf")
        if uid in self._ended:
            entry = self._entries[uid]
            self._drop(entry)
            self._read[uid] = entry

    def _drop(self, entry: Entry) -> None:
        """Drop a job from memory."""
        self._entries.pop(entry.uid, None)
        self._ended.pop(entry.uid, None)
        self.index.remove(entry.uid)
        if entry.key is not None and self._by_key.get(entry.key) == entry.uid:
            del self._by_key[entry.key]

    def apply(self, record: JobRecord, agent: str, wall: float, *, listed: bool = False) -> Entry | None:
        """Take a job's record from its agent; return the job if anything visible changed, else None.

        Args:
            agent: uid of the agent.
            wall: time of the router, seconds since the epoch. The age of an ended job counts from it, because the
                agent's clock may be wrong.
            listed: whether the record is in the list that an agent sends when it links. Such a record counts
                whatever its revision.
        """
        entry = self.get(record.uid)
        if entry is None:
            owner = self.owner_of(record)
            if owner != record.owner:
                record = replace(record, owner=owner)
            entry = Entry.heard(record, agent)
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
        for sets in (self._live, self._running):
            _discard(sets, entry.connection, entry.uid)
        self.tally.drop(entry)
        entry.connection = intern(connection)

    def close(self, entry: Entry, before: JobRecord, removal: str, wall: float) -> None:
        """Mark a job as removed. Arguments as of `Entry.close`."""
        key = entry.key
        entry.close(before, removal)
        self._note_key(entry, key)
        entry.confirmed = True
        self._settle(entry, wall)

    def forget(self, entry: Entry) -> None:
        """Drop a job from the table."""
        uid = entry.uid
        self._drop(entry)
        self._read.pop(uid, None)
        self._deleted.add(uid)
        self._deleted_until = max(self._deleted_until, _end(entry))
        self.tally.drop(entry)
        self.accounts.forget(uid)
        self.taken.give_back(uid)
        _discard(self._live, entry.connection, uid)
        _discard(self._running, entry.connection, uid)

    def _settle(self, entry: Entry, ended_at: float) -> None:
        """Bring every index up to date, in memory."""
        self._entries[entry.uid] = entry
        self._absent = ""
        self._deleted.discard(entry.uid)
        if not entry.ended:
            entry.ended_at = None
            self._ended.pop(entry.uid, None)
        else:
            if entry.ended_at is None:
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

    def _count(self, entry: Entry) -> None:
        self.tally.count(entry)
        if self.is_counted(entry.uid):
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


def _claimed(record: JobRecord) -> str | None:
    return record.owner


def _listed(entry: Entry) -> Listed:
    return Listed(*entry.place, entry.state.value, entry.agent, entry.name, entry.owner)


def _place(entry: Entry) -> Key:
    return entry.place


def _end(entry: Entry) -> float:
    return entry.ended_at or 0.0


def _discard(sets: dict[str, set[str]], connection: str, uid: str) -> None:
    uids = sets.get(connection)
    if uids is not None:
        uids.discard(uid)
        if not uids:
            del sets[connection]
