"""What the tables of the database hold, read when the broker starts, within the bounds that hold today.

Versions before this one kept records, events and properties of any size. What is too large is shortened or left out,
with a line in the log, and the table is corrected, so that it is done once.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from typing import Any

from prouter.broker.jobs.ledger import EVENTS
from prouter.broker.jobs.stored_history import JOB_COLUMNS, StoredHistory, read_entry
from prouter.broker.links.hello import AgentInfo
from prouter.broker.store.restore import Saved, SavedConnection
from prouter.fabric.bounds import MAX_PLATFORM, MAX_PROPERTIES
from prouter.fabric.frames import pack_body, unpack_body
from prouter.jobs import MAX_RECORD

__all__ = ["Repair", "read_tables"]

log = logging.getLogger("prouter.store")

Repair = tuple[str, tuple[Any, ...]]
"""An SQL statement that corrects a row, and its parameters."""

_MAX_EVENT = 2 * MAX_RECORD
"""Most bytes of a packed event: a record, and little else."""
_EVENTS_BYTES = 32 << 20
_MAX_CONNECTION = 2 * (MAX_PROPERTIES + MAX_PLATFORM)
"""Most bytes of a packed connection."""


def read_tables(database: sqlite3.Connection) -> tuple[Saved, list[Repair]]:
    """Read the tables of this version; return their content, and how to correct rows that are too large."""
    saved, repairs = Saved(), list[Repair]()
    _read_connections(database, saved, repairs)
    _read_jobs(database, saved)
    saved.unwanted = [job for (job,) in database.execute("SELECT job FROM unwanted ORDER BY at")]
    saved.keys = database.execute("SELECT key, connection, job FROM keys ORDER BY at").fetchall()
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'digests'").fetchone():
        saved.digests = dict(database.execute("SELECT key, digest FROM digests"))
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'queue'").fetchone():
        saved.queue = database.execute("SELECT job, body FROM queue").fetchall()
    _read_events(database, saved, repairs)
    if repairs:
        log.warning("event=database_shortened rows=%d: an earlier version kept more than this one does", len(repairs))
    return saved, repairs


def _read_connections(database: sqlite3.Connection, saved: Saved, repairs: list[Repair]) -> None:
    for uid, gone, body in database.execute("SELECT uid, gone, body FROM connections"):
        known = unpack_body(body)
        info = AgentInfo.from_wire(known["info"])
        if len(body) > _MAX_CONNECTION:
            info = replace(info, properties={}, platform={})
            shorter = pack_body({**known, "info": info.to_wire()})
            repairs.append(("UPDATE connections SET body = ? WHERE uid = ?", (shorter, uid)))
        address = known.get("address")
        saved.connections.append(
            SavedConnection(
                uid=uid,
                mode=known["mode"],
                info=info,
                since=known["since"],
                gone=bool(gone),
                address=(address[0], address[1]) if address else None,
            )
        )


def _read_jobs(database: sqlite3.Connection, saved: Saved) -> None:
    """The jobs that have not ended. The others stay in the database."""
    for row in database.execute(f"SELECT {JOB_COLUMNS} FROM jobs INDEXED BY jobs_alive WHERE ended_at IS NULL"):  # noqa: S608 - a constant
        entry = read_entry(row)
        if unpack_body(entry.packed)["uid"] != entry.uid:
            raise ValueError("a row has the record of another job")
        saved.jobs.append(entry)
    # The row that was written last has the highest number, because rows are replaced, not changed.
    for (event,) in database.execute("SELECT event FROM jobs ORDER BY rowid DESC LIMIT 1"):
        saved.last_event = event
    saved.history = StoredHistory(database)


def _read_events(database: sqlite3.Connection, saved: Saved, repairs: list[Repair]) -> None:
    """The newest events, as many as are kept. Events that are too large are left out."""
    left = _EVENTS_BYTES
    query = "SELECT id, CASE WHEN length(body) <= ? THEN body END FROM events ORDER BY id DESC LIMIT ?"
    for number, body in database.execute(query, (_MAX_EVENT, EVENTS)):
        saved.last_event = max(saved.last_event, number)
        if body is None:
            repairs.append(("DELETE FROM events WHERE id = ?", (number,)))
            continue
        left -= len(body)
        if left < 0:
            repairs.append(("DELETE FROM events WHERE id <= ?", (number,)))
            break
        event = unpack_body(body)
        at = event.get("at")
        if saved.last_seen is None and isinstance(at, (int, float)):
            saved.last_seen = float(at)
        saved.events.append((number, body))
    saved.events.reverse()
