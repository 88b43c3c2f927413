"""Connections of the broker, each the carrier of one peer's path: they speak ZMTP on the broker's own loop.

Nothing is limited in sending: the streams' windows bound what is in flight, and a send never blocks. What is read is
bounded by turns: who sends faster than the broker reads has to wait.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence

from prouter.broker.switch import Path, Switch
from prouter.errors import ProtocolError
from prouter.fabric.frames import batches, encode
from prouter.transport.wire import Wire

__all__ = ["Control", "Port"]

log = logging.getLogger("prouter.broker")

_MOST_CONTROL = 64 * 1024 * 1024
"""Bytes of control frames that may wait for a peer; what streams have under way is bounded by their windows."""

Control = Callable[["Port", Sequence[bytes], float], None]
"""Gets the parts of a message for the broker itself."""


class Port:
    """A connection, or one to be: messages wait until there is a socket and the peer has introduced itself.

    Attributes:
        path: the peer's, once it is accepted; that of an agent that is dialled from the beginning.
        local: whether the peer is a worker of this host.
        identity: the routing id the peer asked for.
        fd: what to watch; -1 while there is no socket, and when it is closed.
        closed: whether it is.
        leaving: whether it is to be closed: what is queued is sent, and nothing heard any more.
        watched_for_writing: whether it is watched until it is writable, too.

    Args:
        dirty: where this port puts itself when there is something to be flushed.
    """

    __slots__ = (
        "_control_bytes",
        "_dirty",
        "_early",
        "_marked",
        "_wire",
        "closed",
        "fd",
        "leaving",
        "local",
        "path",
        "watched_for_writing",
    )

    def __init__(self, dirty: list[Port], *, local: bool = False) -> None:
        self.path: Path | None = None
        self.local = local
        self.fd = -1
        self.closed = False
        self.leaving = False
        self.watched_for_writing = False
        self._wire: Wire | None = None
        self._early: list[Sequence[bytes]] = []
        self._dirty = dirty
        self._marked = False
        self._control_bytes = 0
        """Queued since the kernel last had room for everything."""

    def connected(self, sock: socket.socket, kind: bytes, peer: bytes, limit: int) -> None:
        """There is a socket.

        Args:
            kind: of this end's ZeroMQ socket.
            peer: of the other's.
            limit: size of a message that is taken while there is no path, bytes.

        Raises:
            OSError: it is closed already.
        """
        self._wire = wire = Wire(sock, kind, peer, limit=limit if self.path is None else None)
        self.fd = wire.fd

    def accept(self, path: Path) -> None:
        """The peer is known: this is its path, and it may send large messages."""
        self.path = path
        if self._wire is not None:
            self._wire.trust()

    @property
    def identity(self) -> bytes:
        """See the class."""
        return self._wire.identity if self._wire is not None else b""

    @property
    def blocked(self) -> bool:
        """Whether `flush` is to be called again when the socket is writable."""
        return self._wire is not None and self._wire.blocked

    @property
    def unfinished(self) -> bool:
        """Whether `pump` has more to do, whatever arrives."""
        return self._wire is not None and self._wire.more

    def pump(self, switch: Switch, now: float, control: Control, unreachable: Callable[[Path, float], None]) -> None:
        """Move what has arrived, or part of it: routed messages to where they go, others to `control`.

        Raises:
            OSError: the connection is closed, and everything that came before was moved.
            ProtocolError: what comes is not ZMTP, or more than is taken from this peer.
        """
        wire = self._wire
        if wire is None:
            return
        messages = wire.receive()
        if self._early and wire.ready:
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
                raise ProtocolError("a stranger wants something passed on")
            target = path.routes.get(bytes(route))
            if target is None:
                switch.dropped += 1
                continue
            path.heard = now
            port: Port = target.carrier
            if port.queue([path.source, *parts]):
                switch.routed += 1
            else:
                switch.dropped += 1
                unreachable(target, now)
        if wire.more and self.path is None:
            raise ProtocolError("a stranger says more than an introduction")

    def queue(self, parts: Sequence[bytes]) -> bool:
        """Have a message sent with the next `flush`; False when the connection is closed."""
        if self.closed:
            return False
        if self._wire is None or not self._wire.ready:
            self._early.append(parts)
            return True
        self._wire.queue(parts)
        if not self._marked:
            self._marked = True
            self._dirty.append(self)
        return True

    def send(self, path: Path) -> bool:
        """Have what is pending on `path` sent with the next `flush`.

        False when the connection is closed, or the peer makes itself be spoken to and does not listen.
        """
        frames, path.pending = path.pending, []
        for batch in batches(frames):
            parts = [b"", *encode(batch)]
            self._control_bytes += sum(map(len, parts))
            if self._control_bytes > _MOST_CONTROL or not self.queue(parts):
                return False
        return True

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it. That the connection is closed, `pump` will tell."""
        self._marked = False
        if self.closed or self._wire is None:
            return
        try:
            self._wire.flush()
            if not self._wire.blocked:
                self._control_bytes = 0
        except OSError as error:
            log.debug("event=peer_unreachable fd=%d error=%r", self.fd, str(error))

    def close(self, linger: float = 0) -> None:
        """Close; what is queued has `linger` seconds to leave, during which this blocks. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.fd = -1
        if self._wire is not None:
            self._wire.finish(linger)
