"""Paths to peers, the frames queued on them, and the routes of messages.

A routed message is ``[route, block, bulk…]``. A worker's message has a connection uid as its route, an agent's the uid
of a worker. The switch knows the path that a route leads to, and the sender's own name, which replaces the route. So no
peer can send in the name of another.
"""

from __future__ import annotations

from typing import Any, Protocol

from prouter.broker.base.security import PLAIN
from prouter.fabric.frames import Frame
from prouter.fabric.session import Session

__all__ = ["Outbox", "Owner", "Path", "Switch"]


class Owner(Protocol):
    """The peer at the other end of a path: a worker, a link to an agent, or one that has not been accepted yet.

    An owner ignores what happens to a path that another path has replaced.
    """

    @property
    def path(self) -> Path | None:
        """Where the owner is reachable now."""

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """Handle the loss of the path.

        Args:
            closed: whether its connection was closed, rather than silent.
        """

    def left(self, path: Path, reason: str, now: float) -> None:
        """Handle the peer's goodbye on the path."""


class Path:
    """One connection to a peer, for as long as it lives.

    Attributes:
        carrier: the I/O shell's own object for the connection.
        rid: routing id of the peer; empty if the broker dialled it.
        session: handshake and heartbeats.
        owner: the peer, None before it is known.
        source: name of the peer, which replaces the route of its messages; empty before it is accepted.
        routes: paths that its messages may go to, by route.
        heard: when the last message came.
        measured: when the round trip was last measured.
        security: how the connection is protected.
        pending: frames to send.
        malformed: how many malformed messages it has sent.
        allowance: control frames that it may still send now; grows with time.
        debt: bytes of control frames that it sent lately; shrinks with time.
        refilled: when allowance and debt were brought up to date.
        overflow: bytes routed from here that were dropped because their receiver takes less.
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
    """Frames that are queued and not sent yet, by path."""

    def __init__(self) -> None:
        self._dirty: list[Path] = []

    def say(self, path: Path, *frames: Frame) -> None:
        """Queue `frames` on `path`."""
        if frames:
            if not path.pending:
                self._dirty.append(path)
            path.pending.extend(frames)

    def take(self) -> list[Path]:
        """The paths with pending frames, in the order of their first one; the caller sends and clears the frames."""
        dirty, self._dirty = self._dirty, []
        return dirty

    def __bool__(self) -> bool:
        return bool(self._dirty)


class Switch:
    """Paths by the route of a message.

    Attributes:
        agents: path of each reachable agent, by connection uid.
        workers: path of each reachable worker, by worker uid.
        routed: messages that were forwarded.
        dropped: messages whose route leads nowhere; their streams resume when the path is back.
    """

    def __init__(self) -> None:
        self.agents: dict[bytes, Path] = {}
        self.workers: dict[bytes, Path] = {}
        self.routed = 0
        self.dropped = 0

    def add_agent(self, path: Path, connection: str) -> None:
        """Route messages for this connection to `path`, and messages from there to workers."""
        path.source = connection.encode("ascii")
        path.routes = self.workers
        self.agents[path.source] = path

    def add_worker(self, path: Path, uid: str) -> None:
        """Route messages for this worker to `path`, and messages from there to agents."""
        path.source = uid.encode("ascii")
        path.routes = self.agents
        self.workers[path.source] = path

    def remove(self, path: Path) -> None:
        """Route nothing to or from `path` any more."""
        for table in (self.agents, self.workers):
            if table.get(path.source) is path:
                del table[path.source]
        path.routes = {}
        path.source = b""
