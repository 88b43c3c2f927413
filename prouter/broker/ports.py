"""Connections of the broker, each the carrier of one peer's path: they speak ZMTP on the broker's own loop.

Nothing is limited in sending: the streams' windows bound what is in flight, and a send never blocks. What is read is
bounded by turns: who sends faster than the broker reads has to wait.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence

from prouter.broker.switch import Path, Switch
from prouter.fabric.frames import batches, encode
from prouter.fabric.zmtp import MAX_MESSAGE
from prouter.transport.wire import Wire

__all__ = ["Control", "Port"]

log = logging.getLogger("prouter.broker")

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
        waits: whether it is watched until it is writable, too.

    Args:
        dirty: where this port puts itself when there is something to be flushed.
    """

    __slots__ = (
        "_dirty",
        "_early",
        "_marked",
        "_wire",
        "closed",
        "fd",
        "local",
        "path",
        "waits",
    )

    def __init__(self, dirty: list[Port], *, local: bool = False) -> None:
        self.path: Path | None = None
        self.local = local
        self.fd = -1
        self.closed = False
        self.waits = False
        self._wire: Wire | None = None
        self._early: list[Sequence[bytes]] = []
        self._dirty = dirty
        self._marked = False

    def connected(self, sock: socket.socket, kind: bytes, peer: bytes, limit: int) -> None:
        """There is a socket.

        Args:
            kind: of this end's ZeroMQ socket.
            peer: of the other's.
            limit: size of a message that is taken while there is no path, bytes.

        Raises:
            OSError: it is closed already.
        """
        self._wire = wire = Wire(sock, kind, peer, limit=limit if self.path is None else MAX_MESSAGE)
        self.fd = wire.fd

    def accept(self, path: Path) -> None:
        """The peer is known: this is its path, and it may send large messages."""
        self.path = path
        if self._wire is not None:
            self._wire.limit = MAX_MESSAGE

    @property
    def identity(self) -> bytes:
        """See the class."""
        return (self._wire.identity if self._wire is not None else b"") or b"nameless"

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
            ProtocolError: what comes is not ZMTP, or more than is taken.
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
            if self.closed:
                return
            path = self.path
            if not route or not parts:
                control(self, parts, now)
                continue
            target = path.routes.get(bytes(route)) if path is not None else None
            if target is None or path is None:
                switch.dropped += 1
                continue
            path.heard = now
            port: Port = target.carrier
            if port.queue([path.source, *parts]):
                switch.routed += 1
            else:
                switch.dropped += 1
                unreachable(target, now)

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
        """Have what is pending on `path` sent with the next `flush`; False when the connection is closed."""
        frames, path.pending = path.pending, []
        return all(self.queue([b"", *encode(batch)]) for batch in batches(frames))

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it. That the connection is closed, `pump` will tell."""
        self._marked = False
        if self.closed or self._wire is None:
            return
        try:
            self._wire.flush()
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
