"""Columns and indexes by which ended jobs are found in the table of jobs.

They have no version of their own, so that an earlier router still opens the database and ignores them. Rows that such a
router wrote have no `size`; they are completed when this version opens the database.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace

from prouter.broker.jobs.entry import key_in, owner_in
from prouter.broker.jobs.stored_history import HISTORY_INDEXES
from prouter.broker.store.space import give_back
from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import MAX_NAME, MAX_RECORD, JobRecord, bounded

__all__ = ["complete_jobs"]

log = logging.getLogger("prouter.store")

_COLUMNS = {"created": "INTEGER", "size": "INTEGER", "owner": "TEXT", "key": "TEXT"}
"""When a job was created, in microseconds; bytes of its record; its owner and the hash of its key, as in the record."""

_COMPLETE = """
    UPDATE jobs SET
        created = CAST(created_at * 1000000 AS INTEGER), size = length(record),
        owner = packed_owner(record), key = packed_key(record),
        ended_at = CASE WHEN state IN ('FINISHED', 'CLOSED') THEN coalesce(ended_at, 0.0) END
    WHERE size IS NULL
"""


def complete_jobs(database: sqlite3.Connection) -> None:
    """Add what the table of jobs lacks, and shorten records that are too large.

    Raises:
        sqlite3.Error: the table is not as it should be, or cannot be written.
        ProtocolError, KeyError, TypeError, ValueError: a record that is too large makes no sense.
    """
    known = {row[1] for row in database.execute("PRAGMA table_info(jobs)")}
    missing = [name for name in _COLUMNS if name not in known]
    with database:
        for name in missing:
            database.execute(f"ALTER TABLE jobs ADD COLUMN {name} {_COLUMNS[name]}")
        database.execute("CREATE INDEX IF NOT EXISTS jobs_incomplete ON jobs (uid) WHERE size IS NULL")
        shortened = _shorten(database)
        if database.execute("SELECT 1 FROM jobs WHERE size IS NULL").fetchone():
            database.create_function("packed_owner", 1, owner_in, deterministic=True)
            database.create_function("packed_key", 1, key_in, deterministic=True)
            changed = database.execute(_COMPLETE).rowcount
            log.info("event=jobs_completed jobs=%d: an earlier version wrote them", changed)
        for statement in HISTORY_INDEXES:
            database.execute(statement)
    if shortened:
        log.warning("event=database_shortened rows=%d: an earlier version kept more than this one does", shortened)
        give_back(database)


def _shorten(database: sqlite3.Connection) -> int:
    """Shorten records and names that an earlier version wrote, within the bounds of this one."""
    large = database.execute(
        "SELECT uid, name, record FROM jobs WHERE size IS NULL AND (length(record) > ? OR length(name) > ?)",
        (MAX_RECORD, MAX_NAME),
    ).fetchall()
    for uid, name, packed in large:
        record = bounded(JobRecord.from_wire(unpack_body(packed)))
        name = bounded(replace(record, name=name)).name
        database.execute("UPDATE jobs SET record = ?, name = ? WHERE uid = ?", (pack_body(record.to_wire()), name, uid))
    return len(large)
