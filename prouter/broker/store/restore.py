"""What an earlier broker stored, and how a new broker takes it over."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from prouter.broker.creations.keys import Keys
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import Ledger, PeerInfo
from prouter.broker.jobs.stored_history import StoredHistory
from prouter.broker.links.dials import Dials
from prouter.broker.links.hello import CLIENT, AgentInfo
from prouter.broker.links.links import Links
from prouter.broker.store.database import migrate

__all__ = ["Saved", "SavedConnection", "restore"]


def no_history() -> StoredHistory:
    """An empty history, until the store has a database."""
    database = sqlite3.connect(":memory:")
    migrate(database)
    return StoredHistory(database, copied=True)


@dataclass(frozen=True, slots=True)
class SavedConnection:
    """A stored connection.

    Attributes:
        gone: whether its agent does not come back; only its jobs are still known.
        address: where the router dialled it, and with which token; None if the agent dialled.
    """

    uid: str
    mode: str
    info: AgentInfo
    since: float
    gone: bool
    address: tuple[str, str] | None


@dataclass(slots=True)
class Saved:
    """All that an earlier broker stored; empty for a router that starts for the first time."""

    connections: list[SavedConnection] = field(default_factory=list)
    jobs: list[Entry] = field(default_factory=list)
    """Those that have not ended."""
    history: StoredHistory = field(default_factory=no_history)
    """Those that have."""
    keys: list[tuple[str, str, str]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    """By key, the digest of its request (`prouter.requests.digest`)."""
    queue: list[tuple[str, bytes]] = field(default_factory=list)
    """Uid and packed row of each queued job."""
    unwanted: list[str] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    last_event: int = 0
    last_seen: float | None = None
    """Time of the last event, seconds since the epoch."""


def restore(saved: Saved, ledger: Ledger, links: Links, dials: Dials, keys: Keys, now: float) -> None:
    """Fill the parts of a new broker. All links are AWAY until their agents come back or are dialled."""
    for key, uid, job in saved.keys:
        keys.restore(key, uid, job, saved.digests.get(key, ""))
    for job in saved.unwanted:
        keys.restore_unwanted(job)
    ledger.table.load(saved.jobs)
    for connection in saved.connections:
        ledger.restore(connection.uid, PeerInfo(connection.mode, connection.info), gone=connection.gone)
        if connection.gone:
            continue
        link = links.restore(connection.uid, connection.mode, connection.info, connection.since, now)
        if connection.mode == CLIENT and connection.address is not None:
            dials.restore(*connection.address, link, now)
