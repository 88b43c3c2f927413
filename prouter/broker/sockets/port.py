"""One peer of the broker: its connection, what it may queue for others, and what waits for it.

A send never blocks. What waits to be sent to a peer is bounded (backlog.py), whatever transport carries it. What is
read in one event loop iteration is bounded, too. A peer that sends faster than the broker reads has to wait. libzmq
reads ahead, so a dialled agent that goes on while it is paused is cut off (connections.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from prouter.broker.base.security import PLAIN, Security
from prouter.broker.base.switch import Path, Switch
from prouter.broker.sockets.backlog import SMALL, Backlog, Queued
from prouter.errors import ProtocolError
from prouter.fabric.frames import batches, encode
from prouter.transport.connection import Connection
from prouter.transport.zmtp.wire import BUFFER_COST

__all__ = ["Control", "Port", "Routing"]

log = logging.getLogger("prouter.broker")

_MOST_CONTROL = 64 * 1024 * 1024
"""Bytes of control frames that may wait for a peer; what streams have under way is bounded by their windows."""

_BLOCK = 16
"""Bytes that each byte of a block counts for beside its own."""
_EARLY = 1024
"""Messages that may wait for a connection."""
_PATIENCE = 1.0
"""Seconds after which those of whom something was dropped are told, although the queue is not empty."""

Control = Callable[["Port", Sequence[bytes], float], None]
"""Gets the parts of a message for the broker itself."""


class Routing(Protocol):
    """What becomes of messages that cannot be passed on."""

    def unreachable(self, target: Path, now: float) -> None:
        """The connection of `target` is closed."""

    def unroutable(self, source: Path, now: float) -> None:
        """A message of `source` was dropped: its route leads nowhere."""

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        """A message of `source` was dropped: too much of it waits for `target` already."""


class Port:
    """A connection, or one to be: messages wait until it is made and the handshake is over.

    Attributes:
        path: the peer's, once it is accepted; that of an agent that is dialled from the beginning.
        worker: whether the peer is a worker of this host.
        local: whether the peer came through a unix socket.
        connection: None while there is none.
        closed: whether it is.
        leaving: whether it is to be closed: what is queued is sent, and nothing heard any more.
        watched_for_writing: whether it waits until the peer takes more.
        paused: whether it is not to be read for now.
        unheard: whether it has more to be moved and waits for its turn (unheard.py).

    Args:
        dirty: where this port puts itself when there is something to be flushed.
    """

    __slots__ = (
        "_backlog",
        "_control",
        "_dirty",
        "_early",
        "_lossy",
        "_lossy_since",
        "_marked",
        "closed",
        "connection",
        "leaving",
        "local",
        "path",
        "paused",
        "unheard",
        "watched_for_writing",
        "worker",
    )

    def __init__(self, dirty: list[Port], *, worker: bool = False, local: bool = False) -> None:
        self.path: Path | None = None
        self.worker = worker
        self.local = local
        self.connection: Connection | None = None
        self.closed = False
        self.leaving = False
        self.watched_for_writing = False
        self.paused = False
        self.unheard = False
        self._backlog = Backlog()
        self._lossy: dict[Path, None] = {}
        """Paths of which messages for this peer were dropped."""
        self._lossy_since = 0.0
        self._early: list[Sequence[bytes]] = []
        self._dirty = dirty
        self._marked = False
        self._control = Queued()

    def connected(self, connection: Connection) -> None:
        """There is a connection; an agent that was dialled is trusted."""
        self.connection = connection
        if self.path is not None:
            connection.trust()

    def accept(self, path: Path) -> None:
        """The peer is known: this is its path, and it may send large messages."""
        self.path = path
        if self.connection is not None:
            self.connection.trust()

    @property
    def fd(self) -> int:
        """The descriptor to watch; -1 when there is none, or the listener's is watched."""
        return self.connection.fd if self.connection is not None and not self.closed else -1

    @property
    def security(self) -> Security:
        """How the connection is protected, and whose key its peer has proved to own."""
        return Security(self.connection.peer_key, self.local) if self.connection is not None else PLAIN

    @property
    def identity(self) -> bytes:
        """The routing id that the peer chose."""
        return self.connection.identity if self.connection is not None else b""

    @property
    def blocked(self) -> bool:
        """Whether `flush` is to be called again when the peer takes more."""
        return self.connection is not None and self.connection.blocked

    @property
    def held(self) -> int:
        """Bytes of messages that have not arrived whole, or that wait to be moved."""
        return self.connection.unfinished if self.connection is not None else 0

    @property
    def unfinished(self) -> bool:
        """Whether `pump` has more to do, whatever arrives."""
        return self.connection is not None and self.connection.more

    def pump(self, switch: Switch, now: float, control: Control, routing: Routing) -> None:
        """Move what has arrived, or part of it: routed messages to where they go, others to `control`.

        Raises:
            OSError: the connection is closed, and everything that came before was moved.
            ProtocolError: what comes is not ZMTP, or more than is taken from this peer.
        """
        connection = self.connection
        if connection is None:
            return
        messages = connection.receive()
        if self._early and connection.ready:
            early, self._early = self._early, []
            for parts in early:
                self.queue(parts)
        for route, *parts in messages:
            if self.closed or self.leaving:
                return
            path = self.path
            if not route or not parts:
                control(self, parts, now)
                continue
            if path is None:
                raise ProtocolError("an unauthenticated connection wants a message passed on")
            target = path.routes.get(bytes(route))
            if target is None:
                switch.dropped += 1
                routing.unroutable(path, now)
                continue
            path.heard = now
            port: Port = target.carrier
            if not port.has_room(path, parts, now):
                switch.dropped += 1
                routing.overflowed(path, target, sum(map(len, parts)), now)
            elif port.queue([path.source, *parts]):
                switch.routed += 1
            else:
                switch.dropped += 1
                routing.unreachable(target, now)
        if connection.more and self.path is None:
            raise ProtocolError("an unauthenticated connection sends more than an introduction")

    def has_room(self, source: Path, parts: Sequence[bytes], now: float) -> bool:
        """Whether a message of `source` may be queued; if not, `relieved` tells of it later."""
        connection = self.connection
        if connection is None or not connection.ready:
            admitted = len(self._early) < _EARLY
        elif connection.taken - connection.sent <= SMALL:
            return True
        else:
            # Each 32 bytes of a block may be a frame, which takes the receiver as long as much of a bulk part.
            size = sum(map(len, parts)) + len(parts) * BUFFER_COST
            cost = size + _BLOCK * len(parts[0])
            admitted = self._backlog.admit(source.source, size, cost, connection.taken, connection.sent)
        if not admitted:
            if not self._lossy:
                self._lossy_since = now
            self._lossy[source] = None
        return admitted

    def relieved(self, now: float) -> list[Path]:
        """Paths of which messages were dropped and for which there is room again."""
        connection = self.connection
        if (
            not self._lossy
            or connection is None
            or (connection.taken - connection.sent > SMALL and now < self._lossy_since + _PATIENCE)
        ):
            return []
        lossy, self._lossy = self._lossy, {}
        return list(lossy)

    def queue(self, parts: Sequence[bytes]) -> bool:
        """Have a message sent with the next `flush`; False when the connection is closed."""
        if self.closed:
            return False
        if self.connection is None or not self.connection.ready:
            self._early.append(parts)
            return True
        self.connection.queue(parts)
        if not self._marked:
            self._marked = True
            self._dirty.append(self)
        return True

    def send(self, path: Path) -> bool:
        """Have what is pending on `path` sent with the next `flush`.

        False when the connection is closed, or the peer makes itself be spoken to and does not listen.
        """
        frames, path.pending = path.pending, []
        connection = self.connection
        if connection is not None and connection.ready:  # Before, nothing leaves.
            self._control.left(connection.taken, connection.sent)
        for batch in batches(frames):
            parts = [b"", *encode(batch)]
            if self._control.add(sum(map(len, parts))) > _MOST_CONTROL or not self.queue(parts):
                return False
        return True

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it. That the connection is closed, `pump` will tell."""
        self._marked = False
        if self.closed or self.connection is None:
            return
        try:
            self.connection.flush()
        except OSError as error:
            log.debug("event=peer_unreachable fd=%d error=%r", self.fd, str(error))

    def close(self, linger: float = 0) -> None:
        """Close; what is queued has `linger` seconds to leave, during which this blocks. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self.connection is not None:
            self.connection.finish(linger)
