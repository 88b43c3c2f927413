"""SQLite underneath the job table: a thread that writes in batches, and what is read when the broker starts.

The memory of the broker is what counts; the store follows within milliseconds. A database that is damaged, or of a
version not known here, is set aside under another name and a new one begun; one that cannot be written for the moment
(a full disk) is read as it is and tried again while the router goes on. A database that is damaged or deleted while the
router runs is replaced by a new one, to which the broker submits everything again.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from prouter.broker.store.restore import Saved
from prouter.broker.store.stored import read_tables
from prouter.errors import ProtocolError

__all__ = ["SCHEMA", "Store", "open_store", "read_store"]

log = logging.getLogger("prouter.store")

SCHEMA = 3
"""Version of the tables, kept in the database's user_version."""

_MIGRATIONS: dict[int, str] = {
    0: """
        CREATE TABLE IF NOT EXISTS jobs (
            uid TEXT PRIMARY KEY, connection TEXT NOT NULL, agent TEXT NOT NULL, name TEXT NOT NULL,
            created_at REAL NOT NULL, state TEXT NOT NULL, revision INTEGER NOT NULL, lost INTEGER NOT NULL,
            removal TEXT NOT NULL, ended_at REAL, record BLOB NOT NULL, event INTEGER NOT NULL
        );
        CREATE TABLE IF NOT EXISTS connections (uid TEXT PRIMARY KEY, gone INTEGER NOT NULL, body BLOB NOT NULL)
            WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS keys
            (key TEXT PRIMARY KEY, connection TEXT NOT NULL, job TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
    """,
    1: "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, body BLOB NOT NULL);",
    2: "CREATE TABLE IF NOT EXISTS unwanted (job TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;",
}
"""Statements that lead from each version to the next."""

_PASSING = (
    "disk is full",
    "disk i/o error",
    "readonly",
    "is locked",
    "unable to open",
    "locking protocol",
    "permission",
)
"""Parts of SQLite's messages about what is not the database's fault (sqlite3_errstr)."""
_DAMAGE = (sqlite3.Error, ProtocolError, KeyError, TypeError, ValueError)
"""What reading a damaged database ends in."""

_UNFIT = (OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What a value ends in that no column can hold. Trying again would not help, and others wait behind it."""

_BATCH = 2000
_RETRY = 1.0
_LOOK = 5.0
"""Seconds after which it is looked whether the database is still there, although nothing is to be written."""
_RENEW = 60.0
"""Seconds between two databases begun anew, should what is wrong not be theirs."""
_BACKLOG = 200_000
"""Statements kept while the database cannot be written; beyond, the oldest are lost."""

_JOURNAL_BYTES = 16 << 20
"""Bytes that the journal may have after a time of many changes."""
_EMPTY_BYTES = 64 << 20
"""Bytes that may be empty in the database after large rows were shortened."""

_EMPTY = "the router starts with an empty job table and history; running jobs come back with their agents"


class _Statement(NamedTuple):
    text: str
    parameters: tuple[Any, ...]
    done: Callable[[float], None] | None


class Store:
    """The writing thread.

    Args:
        path: of the database, made and migrated by `open_store`.
        wake: called on the writing thread when `take_done` has something.

    Attributes:
        on_renewed: among `take_done` when the database was begun anew, or misses something: everything is to be
            submitted again.
    """

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self.failures = 0
        self.written = 0
        self.on_renewed: Callable[[float], None] = _nothing
        self._path = path
        self._wake = wake
        self._queue: queue.SimpleQueue[_Statement | None] = queue.SimpleQueue()
        self._done: deque[Callable[[float], None]] = deque()
        self._held = 0
        self._incomplete = False
        self._renewed_at = -_RENEW
        self._opened: tuple[int, int] = (0, 0)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Statements not written yet."""
        return self._queue.qsize() + self._held

    def submit(self, statement: str, *parameters: Any, done: Callable[[float], None] | None = None) -> None:
        """Have `statement` executed, in order; `done` is among `take_done` once it is committed.

        When the database cannot be written, `done` is there all the same: the router goes on without it.
        """
        self._queue.put(_Statement(statement, parameters, done))

    def take_done(self, most: int) -> list[Callable[[float], None]]:
        """Up to so many callbacks of what was committed; `wake` is called again for the others."""
        found: list[Callable[[float], None]] = []
        while self._done and len(found) < most:
            found.append(self._done.popleft())
        if self._done:
            self._wake()
        return found

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        database: sqlite3.Connection | None = None
        waiting: deque[_Statement] = deque(maxlen=_BACKLOG)
        open_end = True
        while open_end or waiting:
            if not waiting:
                open_end = self._fetch(waiting, _LOOK)
            try:
                if database is None:
                    database = self._open()
                elif self._opened != _identity(self._path):
                    raise sqlite3.DatabaseError("it was deleted or replaced while in use")
                self._write(database, waiting)
            except sqlite3.Error as error:
                self._failed(error, len(waiting))
                if database is not None:
                    database.close()
                    database = None
                if open_end and self._renew(error):
                    continue
                if not open_end:
                    log.error("event=store_incomplete path=%s lost=%d", self._path, len(waiting))
                    break
                open_end = self._hold(waiting)
        if database is not None:
            database.close()

    def _open(self) -> sqlite3.Connection:
        """The database, made if it is not there: then it misses everything.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        fresh = not _size(self._path)
        database = _connect(self._path, patience=0.5)
        self._opened = _identity(self._path)
        self._incomplete |= fresh
        return database

    def _renew(self, error: sqlite3.Error) -> bool:
        """Set the database aside if it is damaged or gone, so that another is begun; whether that was done."""
        if not self._damaged(error) or time.monotonic() < self._renewed_at + _RENEW:
            return False
        self._renewed_at = time.monotonic()
        try:
            _set_aside(self._path, error, "a new one gets all that the router knows")
        except OSError as problem:
            log.error("event=database_not_set_aside path=%s error=%r", self._path, str(problem))
            return False
        return True

    def _damaged(self, error: sqlite3.Error) -> bool:
        if not isinstance(error, sqlite3.OperationalError):
            return True
        return not _passing(error) or ("disk i/o error" in str(error).lower() and _corrupt(self._path))

    def _fetch(self, waiting: deque[_Statement], patience: float | None) -> bool:
        """Take what is in the queue, once there is something, up to a batch; False when it was closed."""
        try:
            for number in range(_BATCH):
                statement = self._queue.get(number == 0, patience)
                if statement is None:
                    return False
                waiting.append(statement)
        except queue.Empty:
            return True
        return True

    def _write(self, database: sqlite3.Connection, waiting: deque[_Statement]) -> None:
        """Commit everything that waits.

        Raises:
            sqlite3.Error: that did not work; nothing was changed.
        """
        if not waiting and not self._incomplete:
            return
        with database:
            for text, parameters, _done in waiting:
                try:
                    database.execute(text, parameters)
                except _UNFIT as error:
                    self.failures += 1
                    log.error("event=statement_refused statement=%r error=%r", text, str(error))
        self.written += len(waiting)
        self._call_back(waiting)
        waiting.clear()
        self._held = 0
        if self._incomplete:
            self._incomplete = False
            self._done.append(self.on_renewed)
            self._wake()

    def _failed(self, error: sqlite3.Error, count: int) -> None:
        self.failures += 1
        if self.failures == 1 or self.failures % 60 == 0:
            log.error("event=store_failed path=%s error=%r waiting=%d", self._path, str(error), count)

    def _hold(self, waiting: deque[_Statement]) -> bool:
        """Let everybody go on whose statement waits, until it is time to try again; False when it was closed."""
        again = time.monotonic() + _RETRY
        fresh = waiting.copy()
        waiting.clear()
        open_end = True
        while True:
            self._call_back(fresh)
            self._incomplete |= len(waiting) + len(fresh) > _BACKLOG
            waiting.extend(statement._replace(done=None) for statement in fresh)
            self._held = len(waiting)
            patience = again - time.monotonic()
            if not open_end or patience <= 0:
                return open_end
            fresh.clear()
            open_end = self._fetch(fresh, patience)

    def _call_back(self, statements: Iterable[_Statement]) -> None:
        calls = [statement.done for statement in statements if statement.done is not None]
        if calls:
            self._done.extend(calls)
            self._wake()


def open_store(path: Path) -> Saved:
    """Make or migrate the database at `path` and read it. One that is damaged is set aside.

    Raises:
        OSError: nothing can be opened there.
    """
    try:
        return _open(path)
    except _DAMAGE as error:
        if _passing(error) and not _corrupt(path):
            return _as_it_is(path, error)
        _set_aside(path, error, _EMPTY)
    try:
        return _open(path)
    except sqlite3.OperationalError as error:
        return _as_it_is(path, error)


def _open(path: Path) -> Saved:
    if path.is_dir():
        raise sqlite3.DatabaseError("it is a directory")
    path.touch(mode=0o600)
    with closing(_connect(path)) as database:
        return read_store(database)


def _set_aside(path: Path, error: Exception, consequence: str) -> None:
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    log.critical(
        "event=database_set_aside path=%s aside=%s error=%r: %s",
        path,
        aside,
        str(error),
        consequence,
    )
    for suffix in ("", "-wal", "-shm"):
        leftover = path.with_name(path.name + suffix)
        if leftover.exists():
            os.replace(leftover, aside.with_name(aside.name + suffix))


def _identity(path: Path) -> tuple[int, int]:
    """Which file is at `path`; zeros for none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _nothing(_now: float) -> None:
    """Nobody has anything to submit again."""


def _as_it_is(path: Path, error: Exception) -> Saved:
    """What can be read of a database that cannot be written for now."""
    saved, found = Saved(), "nothing"
    # Without a WAL nothing but the file counts, and SQLite need not make files beside it, which a full disk forbids.
    wal = path.with_name(path.name + "-wal")
    how = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=5.0)) as database:
            if database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA:
                (saved, _), found = read_tables(database), "all of it"
    except _DAMAGE as problem:
        log.error("event=database_not_read path=%s error=%r", path, str(problem))
    log.critical(
        "event=database_not_writable path=%s error=%r read=%r: the router goes on and tries again; what happens until"
        " then is forgotten if it ends",
        path,
        str(error),
        found,
    )
    return saved


def read_store(database: sqlite3.Connection) -> Saved:
    """Make or migrate the tables of an open database, read them, and correct what is too large in them."""
    _migrate(database)
    saved, repairs = read_tables(database)
    if repairs:
        with database:
            for statement, parameters in repairs:
                database.execute(statement, parameters)
        _give_back(database)
    return saved


def _give_back(database: sqlite3.Connection) -> None:
    """Give the file system what large rows have left empty."""
    free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
    if free * size > _EMPTY_BYTES:
        database.execute("VACUUM")


def _migrate(database: sqlite3.Connection) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= SCHEMA:
        raise sqlite3.DatabaseError(f"it was made by another version ({version}, this one knows 0 to {SCHEMA})")
    if 0 < version < SCHEMA:
        log.info("event=database_migrated from=%d to=%d", version, SCHEMA)
    while version < SCHEMA:
        database.executescript(f"BEGIN; {_MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;")
        version += 1
    # Without a version of its own: an earlier router that finds it leaves it alone, and goes on with all the rest.
    database.execute("CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID")


def _connect(path: Path, patience: float = 5.0) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=patience)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _passing(error: Exception) -> bool:
    """Whether it may pass by itself; what SQLite says of tables and columns does not."""
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(part in text for part in _PASSING)


def _corrupt(path: Path) -> bool:
    """Whether SQLite itself says so; a locked or unreachable file is another matter."""
    try:
        with closing(sqlite3.connect(path, timeout=5.0)) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
