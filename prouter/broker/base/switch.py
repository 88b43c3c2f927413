"""Paths to peers, what waits to be said on them, and where routed messages go.

A routed message is ``[route, block, bulk…]``: from a worker with a connection uid as its route, from an agent with a
worker's uid. The switch finds the path that leads there and the sender's own name, which replaces the route: nobody
can speak for another.
"""

from __future__ import annotations

from typing import Any, Protocol

from prouter.broker.base.security import PLAIN
from prouter.fabric.frames import Frame
from prouter.fabric.session import Session

__all__ = ["Outbox", "Owner", "Path", "Switch"]


class Owner(Protocol):
    """The peer at the other end of a path: a worker, an agent's link, or somebody who wants to become one.

    What is said of a path that is not the owner's own any more counts for nothing.
    """

    @property
    def path(self) -> Path | None:
        """Where the owner is reachable now."""

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """The path is lost: `closed` when its connection was closed, else the peer fell silent."""

    def left(self, path: Path, reason: str, now: float) -> None:
        """The peer said goodbye on the path."""


class Path:
    """One way to a peer: a connection, for as long as it lives.

    Attributes:
        carrier: what the I/O shell sends through; opaque here.
        rid: routing id the peer asked for; empty for one that was dialled.
        session: heartbeats.
        owner: who is at the other end, None before it is known.
        source: name stamped on messages routed from here; empty until the peer is accepted.
        routes: where messages routed from here may go.
        heard: when something was last received.
        measured: when the round trip was last measured.
        security: how the connection is protected.
        pending: frames to be sent.
        malformed: messages of it that were no messages.
        allowance: control messages it may still send now; grows with time.
        debt: bytes of control frames it sent lately; shrinks with time.
        refilled: when these two last changed so.
        overflow: bytes routed from here that were dropped because the receiver takes less.
    """

    __slots__ = (
        "allowance",
        "carrier",
        "debt",
        "heard",
        "malformed",
        "measured",
        "overflow",
        "owner",
        "pending",
        "refilled",
        "rid",
        "routes",
        "security",
        "session",
        "source",
    )

    def __init__(self, carrier: Any, rid: bytes, session: Session, now: float) -> None:
        self.carrier = carrier
        self.rid = rid
        self.session = session
        self.owner: Owner | None = None
        self.security = PLAIN
        self.source = b""
        self.routes: dict[bytes, Path] = {}
        self.heard = now
        self.measured = now
        self.pending: list[Frame] = []
        self.malformed = 0
        self.allowance = 0.0
        self.debt = 0.0
        self.refilled = float("-inf")
        self.overflow = 0


class Outbox:
    """Frames said and not sent yet, per path in the order the paths were first used."""

    def __init__(self) -> None:
        self._dirty: list[Path] = []

    def say(self, path: Path, *frames: Frame) -> None:
        """Queue `frames` on `path`."""
        if frames:
            if not path.pending:
                self._dirty.append(path)
            path.pending.extend(frames)

    def take(self) -> list[Path]:
        """Paths with frames pending; the caller sends and clears them."""
        dirty, self._dirty = self._dirty, []
        return dirty

    def __bool__(self) -> bool:
        return bool(self._dirty)


class Switch:
    """Where routed messages go.

    Attributes:
        agents: path of each linked agent, by connection uid.
        workers: path of each linked worker, by worker uid.
        routed: messages passed on.
        dropped: messages that led nowhere; their streams resume when the way is back.
    """

    def __init__(self) -> None:
        self.agents: dict[bytes, Path] = {}
        self.workers: dict[bytes, Path] = {}
        self.routed = 0
        self.dropped = 0

    def add_agent(self, path: Path, connection: str) -> None:
        """From now on `path` is where `connection` leads."""
        path.source = connection.encode("ascii")
        path.routes = self.workers
        self.agents[path.source] = path

    def add_worker(self, path: Path, uid: str) -> None:
        """From now on `path` is where the worker `uid` is."""
        path.source = uid.encode("ascii")
        path.routes = self.agents
        self.workers[path.source] = path

    def remove(self, path: Path) -> None:
        """Nothing is routed to or from `path` any more."""
        for table in (self.agents, self.workers):
            if table.get(path.source) is path:
                del table[path.source]
        path.routes = {}
        path.source = b""
