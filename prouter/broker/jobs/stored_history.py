"""Jobs that have ended, read from the database when somebody asks for them.

Every query follows an index (`HISTORY_INDEXES`) and is read row by row, so it costs what it returns, however long the
history is. The broker's loop waits for it. So nothing here may scan the history but `totals`, which is for the start.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import combinations
from typing import Any

from prouter.broker.jobs.entry import Entry
from prouter.jobs import State

__all__ = ["HISTORY_INDEXES", "JOB_COLUMNS", "Key", "StoredHistory", "read_entry"]

log = logging.getLogger("prouter.broker")

Key = tuple[int, str]
"""Creation time in microseconds and uid of a job: unique, and in the order of creation."""

JOB_COLUMNS = "uid, connection, agent, name, created_at, state, revision, lost, removal, ended_at, record"
"""The columns from which `read_entry` makes a job."""

_FILTERS = ("owner", "agent", "name")
_LARGEST = 2**63 - 1
"""The largest integer that SQLite can hold."""
_PART = 200
"""Rows that `after` reads at once."""


def _by(filters: tuple[str, ...]) -> str:
    """Name of the index for lists with these filters."""
    return "_".join(("jobs_listed", *filters))


def _list_indexes() -> Iterator[str]:
    for count in range(len(_FILTERS) + 1):
        for filters in combinations(_FILTERS, count):
            owned = " AND owner IS NOT NULL" if "owner" in filters else ""
            columns = ", ".join(("state", *filters, "created", "uid"))
            yield f"CREATE INDEX IF NOT EXISTS {_by(filters)} ON jobs ({columns}) WHERE ended_at IS NOT NULL{owned}"


HISTORY_INDEXES = (
    *_list_indexes(),
    "CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS jobs_totals ON jobs (connection, state, size) WHERE ended_at IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS jobs_keyed ON jobs (key, created, uid) WHERE key IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS jobs_to_remove ON jobs (connection) WHERE removal <> '' AND state = 'FINISHED'",
    "CREATE INDEX IF NOT EXISTS jobs_alive ON jobs (ended_at) WHERE ended_at IS NULL",
)
"""SQL that makes the indexes of the table of jobs: one for each set of filters that lists have, and a few more."""


class StoredHistory:
    """The ended jobs in the database. They may be out of date or deleted meanwhile: the job table knows which are.

    Args:
        database: a connection for reading. The history closes it.
        reopen: opens the database anew; None if there is no other connection to it.
        copied: whether `database` is only a copy, which does not get what the broker stores.

    Attributes:
        readable: whether the last query succeeded.
    """

    def __init__(
        self, database: sqlite3.Connection, reopen: Callable[[], sqlite3.Connection] | None = None, copied: bool = False
    ) -> None:
        self.copied = copied
        self.readable = True
        self._database = database
        self._reopen = reopen

    def get(self, uid: str) -> Entry | None:
        """The job with this uid."""
        with closing(self._entries("WHERE uid = ? AND ended_at IS NOT NULL", uid)) as found:
            return next(found, None)

    def with_key(self, key: str) -> Generator[Entry, None, None]:
        """Jobs that an idempotency key with this hash gave, the oldest first."""
        return self._entries(
            "INDEXED BY jobs_keyed WHERE key = ? AND ended_at IS NOT NULL ORDER BY created, uid",
            key,
        )

    def newest(
        self, state: State, owner: str | None, agent: str | None, name: str | None, before: Key | None
    ) -> Generator[Entry, None, None]:
        """Jobs in a state, the newest first, filtered like lists; only those older than `before`."""
        values = {"owner": owner, "agent": agent, "name": name}
        filters = tuple(column for column in _FILTERS if values[column] is not None)
        terms = ["state = ?", "ended_at IS NOT NULL", *(f"{column} = ?" for column in filters)]
        parameters: list[Any] = [state.value, *(values[column] for column in filters)]
        if before is not None:
            terms.append("(created, uid) < (?, ?)")
            parameters += (min(before[0], _LARGEST), before[1])
        wanted = f"INDEXED BY {_by(filters)} WHERE {' AND '.join(terms)} ORDER BY created DESC, uid DESC"
        return self._entries(wanted, *parameters)

    def oldest(self, since: float) -> Generator[Entry, None, None]:
        """Jobs that ended at `since` or later (seconds since the epoch), those that ended first at the beginning."""
        return self._entries(
            "INDEXED BY jobs_ended WHERE ended_at IS NOT NULL AND ended_at >= ? ORDER BY ended_at", since
        )

    def to_remove(self, connection: str) -> set[str]:
        """Uids of a connection's jobs that somebody asked to remove, and that were not removed."""
        query = "SELECT uid FROM jobs INDEXED BY jobs_to_remove"
        return {
            uid
            for (uid,) in self._rows(
                f"{query} WHERE connection = ? AND removal <> '' AND state = 'FINISHED'", connection
            )
        }

    def totals(self) -> list[tuple[str, str, int, int]]:
        """Number of jobs and bytes of their records, by connection and state. It reads the whole of an index."""
        return list(
            self._rows(
                "SELECT connection, state, count(*), sum(size) FROM jobs INDEXED BY jobs_totals"
                " WHERE ended_at IS NOT NULL GROUP BY connection, state"
            )
        )

    def all(self) -> Generator[Entry, None, None]:
        """All jobs, some at a time, so that the database may change while they are handled.

        Of a damaged database, those that can be read.
        """
        last, step = -1, _PART
        ((end,),) = list(self._rows("SELECT max(rowid) FROM jobs")) or [(None,)]
        query = " ".join(
            ("SELECT", JOB_COLUMNS, ", rowid FROM jobs WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?")
        )
        while end is not None and last < end:
            rows = list(self._rows(query, last, end, _PART))
            if rows:
                last, step = rows[-1][-1], _PART
            elif self.readable:
                return
            else:  # This part is damaged.
                last, step = last + step, 2 * step
            yield from (entry for entry in (read_entry(row[:-1]) for row in rows) if entry.ended)

    def reopen(self) -> bool:
        """Read what the path leads to now, because it may be another file; return whether it can be read."""
        if self._reopen is None:
            return not self.copied
        try:
            database = self._reopen()
        except sqlite3.Error as error:
            self._failed(error)
            return False
        self.close()
        self._database, self.copied, self.readable = database, False, True
        return True

    def become_copy(self, reopen: Callable[[], sqlite3.Connection]) -> None:
        """Note that the database is a copy, and how to open the real one later."""
        self.copied, self._reopen = True, reopen

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def _entries(self, wanted: str, *parameters: Any) -> Generator[Entry, None, None]:
        with closing(self._rows(" ".join(("SELECT", JOB_COLUMNS, "FROM jobs", wanted)), *parameters)) as rows:
            for row in rows:
                yield read_entry(row)

    def _rows(self, query: str, *parameters: Any) -> Generator[tuple[Any, ...], None, None]:
        """Rows one by one. A database that cannot be read has none, and `readable` says so."""
        try:
            with closing(self._database.execute(query, parameters)) as rows:
                yield from rows
        except sqlite3.Error as error:
            self._failed(error)
        else:
            self.readable = True

    def _failed(self, error: sqlite3.Error) -> None:
        if self.readable:
            log.error("event=history_not_read error=%r", str(error))
        self.readable = False


def read_entry(row: tuple[Any, ...]) -> Entry:
    """Make a job from its `JOB_COLUMNS`."""
    uid, connection, agent, name, created_at, state, revision, lost, removal, ended_at, packed = row
    return Entry(uid, connection, agent, name, created_at, state, revision, bool(lost), removal, ended_at, packed)
