"""The stored state of an earlier broker, read when a broker starts.

A database that is damaged, or of an unknown version, is set aside under another name, and a new one is begun. One that
cannot be written for the moment, for example because the disk is full, is read as it is.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

from prouter.broker.jobs.stored_history import StoredHistory
from prouter.broker.store.database import connect, corrupt, migrate, open_to_read, passing, set_aside
from prouter.broker.store.restore import Saved
from prouter.broker.store.space import give_back
from prouter.broker.store.stored import read_tables
from prouter.errors import ProtocolError

__all__ = ["open_store", "read_store"]

log = logging.getLogger("prouter.store")

_DAMAGE = (sqlite3.Error, ProtocolError, KeyError, TypeError, ValueError)
"""Errors that reading a damaged database raises."""

_EMPTY = "the router starts with an empty job table and history; running jobs come back with their agents"


def open_store(path: Path) -> Saved:
    """Make or migrate the database at `path`, and read it. A damaged one is set aside.

    Raises:
        OSError: no file can be opened there.
    """
    try:
        return _open(path)
    except _DAMAGE as error:
        if passing(error) and not corrupt(path):
            return _as_it_is(path, error)
        set_aside(path, error, _EMPTY)
    try:
        return _open(path)
    except sqlite3.OperationalError as error:
        return _as_it_is(path, error)


def _open(path: Path) -> Saved:
    if path.is_dir():
        raise sqlite3.DatabaseError("it is a directory")
    path.touch(mode=0o600)
    with closing(connect(path)) as database:
        saved = read_store(database)
    saved.history = StoredHistory(open_to_read(path), partial(open_to_read, path))
    return saved


def _as_it_is(path: Path, error: Exception) -> Saved:
    """Read what can be read of a database that cannot be written for now."""
    saved, found = Saved(), "nothing"
    # Without a WAL the file alone counts, and SQLite need not make files beside it, which a full disk forbids.
    wal = path.with_name(path.name + "-wal")
    how = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=5.0)) as database:
            copy = sqlite3.connect(":memory:")
            database.backup(copy)
        saved, found = read_store(copy), "all of it"
    except _DAMAGE as problem:
        log.error("event=database_not_read path=%s error=%r", path, str(problem))
    log.critical(
        "event=database_not_writable path=%s error=%r read=%r: the router goes on and tries again; what happens until"
        " then is forgotten if it ends",
        path,
        str(error),
        found,
    )
    saved.history.become_copy(partial(open_to_read, path))
    return saved


def read_store(database: sqlite3.Connection) -> Saved:
    """Make or migrate the tables of an open database, read them, and shorten rows that are too large."""
    migrate(database)
    saved, repairs = read_tables(database)
    if repairs:
        with database:
            for statement, parameters in repairs:
                database.execute(statement, parameters)
        give_back(database)
    return saved
