"""SQLite underneath the job table: a thread that writes in batches, and what is read when the broker starts.

The memory of the broker is what counts; the store follows within milliseconds. A database that cannot be read is set
aside under another name and a new one begun; one that cannot be written for the moment (a full disk) is tried again
while the router goes on.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from prouter.broker.entry import Entry
from prouter.broker.hello import AgentInfo
from prouter.broker.restore import Saved, SavedConnection
from prouter.errors import ProtocolError
from prouter.fabric.frames import unpack_body

__all__ = ["SCHEMA", "Store", "open_store", "read_store"]

log = logging.getLogger("prouter.store")

SCHEMA = 1
"""Version of the tables, kept in the database's user_version."""

_MIGRATIONS: dict[int, str] = {
    0: """
        CREATE TABLE jobs (
            uid TEXT PRIMARY KEY, connection TEXT NOT NULL, agent TEXT NOT NULL, name TEXT NOT NULL,
            created_at REAL NOT NULL, state TEXT NOT NULL, revision INTEGER NOT NULL, lost INTEGER NOT NULL,
            removal TEXT NOT NULL, ended_at REAL, record BLOB NOT NULL, event INTEGER NOT NULL
        );
        CREATE TABLE connections (uid TEXT PRIMARY KEY, gone INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE keys (key TEXT PRIMARY KEY, connection TEXT NOT NULL, job TEXT NOT NULL, at REAL NOT NULL)
            WITHOUT ROWID;
    """,
}
"""Statements that lead from each version to the next."""

_BATCH = 2000
_RETRY = 1.0
_BACKLOG = 200_000
"""Statements kept while the database cannot be written; beyond, the oldest are lost."""


class _Statement(NamedTuple):
    text: str
    parameters: tuple[Any, ...]
    done: Callable[[float], None] | None


class Store:
    """The writing thread.

    Args:
        path: of the database, made and migrated by `open_store`.
        wake: called on the writing thread when `take_done` has something.
    """

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self.failures = 0
        self.written = 0
        self._path = path
        self._wake = wake
        self._queue: queue.SimpleQueue[_Statement | None] = queue.SimpleQueue()
        self._done: deque[Callable[[float], None]] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Statements not taken up yet."""
        return self._queue.qsize()

    def submit(self, statement: str, *parameters: Any, done: Callable[[float], None] | None = None) -> None:
        """Have `statement` executed, in order; `done` is among `take_done` once it is committed.

        When the database cannot be written, `done` is there all the same: the router goes on without it.
        """
        self._queue.put(_Statement(statement, parameters, done))

    def take_done(self) -> list[Callable[[float], None]]:
        """Callbacks of what was committed since the last time."""
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        database = _connect(self._path, patience=0.5)
        waiting: deque[_Statement] = deque()
        open_end = True
        most: float = _BATCH
        while open_end or waiting:
            open_end = self._fetch(waiting, most, block=open_end and not waiting) and open_end
            most = _BATCH
            if waiting and not self._write(database, waiting):
                self._report(waiting)
                most = inf
                if self._closing.wait(_RETRY):
                    log.error("event=store_incomplete path=%s lost=%d", self._path, len(waiting))
                    break
        database.close()

    def _fetch(self, waiting: deque[_Statement], most: float, *, block: bool) -> bool:
        """Take statements from the queue until `most` are waiting; False when it was closed."""
        try:
            while len(waiting) < most:
                statement = self._queue.get(block)
                block = False
                if statement is None:
                    return False
                waiting.append(statement)
        except queue.Empty:
            return True
        return True

    def _write(self, database: sqlite3.Connection, waiting: deque[_Statement]) -> bool:
        """Commit everything that waits; whether that worked."""
        try:
            with database:
                for text, parameters, _done in waiting:
                    database.execute(text, parameters)
        except sqlite3.Error as error:
            self.failures += 1
            if self.failures == 1 or self.failures % 60 == 0:
                log.error("event=store_failed path=%s error=%r waiting=%d", self._path, str(error), len(waiting))
            return False
        self.written += len(waiting)
        self._report(waiting)
        waiting.clear()
        return True

    def _report(self, waiting: deque[_Statement]) -> None:
        """Call back; after a failure the statements stay, without their callbacks."""
        calls = [statement.done for statement in waiting if statement.done is not None]
        kept = [statement._replace(done=None) for statement in waiting]
        waiting.clear()
        waiting.extend(kept[-_BACKLOG:])
        if calls:
            self._done.extend(calls)
            self._wake()


def open_store(path: Path) -> Saved:
    """Make or migrate the database at `path` and read it. One that cannot be read is set aside."""
    try:
        return _open(path)
    except (sqlite3.DatabaseError, ProtocolError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, sqlite3.OperationalError) and path.exists() and not _corrupt(path):
            raise
        aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
        log.critical(
            "event=database_set_aside path=%s aside=%s error=%r: the router starts with an empty job table and history;"
            " running jobs come back with their agents",
            path,
            aside,
            str(error),
        )
        os.replace(path, aside)
        for suffix in ("-wal", "-shm"):
            leftover = path.with_name(path.name + suffix)
            if leftover.exists():
                os.replace(leftover, aside.with_name(aside.name + suffix))
        return _open(path)


def _open(path: Path) -> Saved:
    path.touch(mode=0o600)
    with closing(_connect(path)) as database:
        return read_store(database)


def read_store(database: sqlite3.Connection) -> Saved:
    """Make or migrate the tables of an open database and read them."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise sqlite3.DatabaseError(f"it was made by a newer version ({version}, this one knows {SCHEMA})")
    while version < SCHEMA:
        database.executescript(f"BEGIN; {_MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;")
        version += 1
    saved = Saved()
    for uid, gone, body in database.execute("SELECT uid, gone, body FROM connections"):
        known = unpack_body(body)
        address = known.get("address")
        saved.connections.append(
            SavedConnection(
                uid=uid,
                mode=known["mode"],
                info=AgentInfo.from_wire(known["info"]),
                since=known["since"],
                gone=bool(gone),
                address=(address[0], address[1]) if address else None,
            )
        )
    for row in database.execute("SELECT * FROM jobs"):
        uid, connection, agent, name, created_at, state, revision, lost, removal, ended_at, packed, event = row
        entry = Entry(uid, connection, agent, name, created_at, state, revision, bool(lost), removal, ended_at, packed)
        if not entry.ended:
            entry.set(entry.last_record)
            entry.confirmed = False
        saved.jobs.append(entry)
        saved.last_event = max(saved.last_event, event)
    saved.keys = database.execute("SELECT key, connection, job FROM keys ORDER BY at").fetchall()
    return saved


def _connect(path: Path, patience: float = 5.0) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=patience)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    return database


def _corrupt(path: Path) -> bool:
    """Whether SQLite itself says so; a locked or unreachable file is another matter."""
    try:
        with closing(sqlite3.connect(path, timeout=5.0)) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
