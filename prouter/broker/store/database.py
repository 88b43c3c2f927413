"""The database file: its tables and their versions, and how to tell damage from trouble that passes."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from prouter.broker.store.history_columns import complete_jobs

__all__ = ["SCHEMA", "connect", "corrupt", "identity", "migrate", "open_to_read", "passing", "set_aside", "size"]

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
"""SQL that leads from each version to the next."""

_PASSING = (
    "disk is full",
    "disk i/o error",
    "readonly",
    "is locked",
    "unable to open",
    "locking protocol",
    "permission",
)
"""Parts of SQLite's messages about faults that are not the database's (sqlite3_errstr)."""

_JOURNAL_BYTES = 16 << 20
"""Bytes to which SQLite cuts the journal after many changes."""


def connect(path: Path, patience: float = 5.0) -> sqlite3.Connection:
    """Open the database for writing, make or migrate its tables.

    Args:
        patience: seconds to wait while another process has it locked.

    Raises:
        sqlite3.Error: it cannot be opened, or its tables have an unknown version.
    """
    database = sqlite3.connect(path, timeout=patience)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open the database for reading, while `Store` writes to it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    # Read-only, so that closing it does not delete the journal, which may be that of another file with this name.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)


def migrate(database: sqlite3.Connection) -> None:
    """Bring the tables to the version `SCHEMA`, and jobs that an earlier version wrote within the bounds of this one.

    Raises:
        sqlite3.DatabaseError: they have a version that this router does not know.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= SCHEMA:
        raise sqlite3.DatabaseError(f"its tables have version {version}, this router knows 0 to {SCHEMA}")
    if 0 < version < SCHEMA:
        log.info("event=database_migrated from=%d to=%d", version, SCHEMA)
    while version < SCHEMA:
        database.executescript(f"BEGIN; {_MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;")
        version += 1
    # These tables have no version of their own, so that an earlier router still opens the database and ignores them.
    database.execute("CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID")
    database.execute("CREATE TABLE IF NOT EXISTS queue (job TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
    complete_jobs(database)


def passing(error: Exception) -> bool:
    """Whether the trouble may pass by itself, unlike errors about tables and columns."""
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(part in text for part in _PASSING)


def corrupt(path: Path) -> bool:
    """Whether SQLite finds the database damaged; a locked or unreachable file is not."""
    try:
        with closing(sqlite3.connect(path, timeout=5.0)) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def set_aside(path: Path, error: Exception, consequence: str) -> None:
    """Rename a database that is of no use, and log why.

    Args:
        consequence: what that means, for the log.

    Raises:
        OSError: it cannot be renamed.
    """
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


def identity(path: Path) -> tuple[int, int]:
    """Device and inode number of the file at `path`; zeros if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def size(path: Path) -> int:
    """Bytes of the file at `path`; 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
