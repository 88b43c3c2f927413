"""A ROUTER that listens, on the gevent loop: callbacks for the messages of each connection and for its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent import get_hub

from prouter.errors import ProtocolError
from prouter.process.memory import keep_freed_memory
from prouter.transport.connection import Connection
from prouter.transport.unauthenticated import Unauthenticated
from prouter.transport.zeromq.listener import RouterListener
from prouter.transport.zmtp.server_keys import ServerCurve

__all__ = ["RouterSocket"]

log = logging.getLogger("prouter.transport")

_MOST_UNAUTHENTICATED = 256
"""Connections that may be unauthenticated at once. Few routers dial an agent; the most silent are closed."""
_BUSY, _IDLE = 0.1, 1.0
"""Seconds between two looks at time limits, and the same while all peers are authenticated and read what is sent."""
_READ = 1
"""Event of libev's watchers."""


class RouterSocket:
    """A listener whose connections are authenticated by its owner.

    A new connection has a few seconds and one small message to introduce itself; the owner calls `trust` or `drop`.
    Parts of 64 KiB or more arrive as memoryviews, all others as bytes.

    Args:
        interface: address to listen on.
        port: 0 for any free one.
        on_message: gets the connection and each of its messages.
        on_closed: told of each trusted connection that ends; not of those that `drop` closed.
        curve: encryption; None for none.
        limit: bytes that a connection may send before it is trusted.

    Attributes:
        endpoint: ``tcp://HOST:PORT`` that was bound.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        interface: str,
        port: int,
        on_message: Callable[[Connection, list[bytes]], None],
        on_closed: Callable[[Connection], None],
        *,
        curve: ServerCurve | None = None,
        limit: int = 64 * 1024,
    ) -> None:
        keep_freed_memory()
        self._listener = RouterListener(interface, port, curve=curve, limit=limit)
        self.endpoint = self._listener.endpoint
        self._on_message = on_message
        self._on_closed = on_closed
        self._unauthenticated: Unauthenticated[Connection] = Unauthenticated(_MOST_UNAUTHENTICATED)
        self._trusted: set[Connection] = set()
        self._unfinished: dict[Connection, None] = {}
        """Connections with more to be received, in order."""
        self._looking = False
        """Whether the loop is to call `_go_on` soon."""
        self._closed = False
        self._loop = get_hub().loop
        self._watcher: Any = self._loop.io(self._listener.fd, _READ)
        self._watcher.start(self._news)
        self._ticker = gevent.spawn(self._tick)
        # libzmq's descriptor tells of news only after somebody has looked once.
        self._look_soon()

    def trust(self, connection: Connection) -> None:
        """Lift the limits of a connection: its peer is authenticated."""
        self._unauthenticated.gone(connection)
        self._trusted.add(connection)
        connection.trust()

    def send(self, connection: Connection, parts: Sequence[bytes]) -> bool:
        """Send or queue one message; False when the connection is closed. Nothing blocks."""
        if self._closed:
            return False
        connection.queue(parts)
        sent = self._flush(connection)
        if self._listener.more:
            self._look_soon()
        return sent

    def drop(self, connection: Connection, linger: float = 0) -> None:
        """Close a connection; what is queued has `linger` seconds to leave. Idempotent."""
        self._forget(connection)
        if linger:
            connection.finish(linger)
        else:
            connection.close()

    def close(self, linger: float = 0) -> None:
        """Close all connections; what is queued has `linger` seconds to leave in the background. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._ticker.kill(block=False)
        self._watcher.stop()
        self._watcher.close()
        self._listener.close(linger)

    # -- what arrives -----------------------------------------------------------------------------------------------

    def _news(self) -> None:
        """Accept connections, and receive from those that have something."""
        listener = self._listener
        now = time.monotonic()
        try:
            for connection in listener.accept():
                self._unauthenticated.opened(connection, now)
            for excess in self._unauthenticated.take_excess():
                self.drop(excess)
        except OSError as error:
            log.error("event=accept_failed endpoint=%s error=%r", self.endpoint, str(error))
        for connection in listener.arrived():
            self._pump(connection)
            if self._closed:
                return
        self._close_due(now)
        if listener.more:
            self._look_soon()

    def _pump(self, connection: Connection) -> None:
        """Hand on what a connection has received, and send what its peer has room for."""
        if connection.blocked:
            self._flush(connection)
        try:
            messages = connection.receive()
        except (OSError, ProtocolError) as error:
            self._lost(connection, error)
            return
        trusted = connection in self._trusted
        if not trusted:
            self._unauthenticated.heard(connection, time.monotonic())
        for parts in messages:
            try:
                self._on_message(connection, parts)
            except Exception:
                log.exception("event=message_failed parts=%d", len(parts))
            if trusted and connection not in self._trusted:
                return  # It was dropped for what it said.
        if connection.more and not self._closed:
            self._unfinished[connection] = None
            self._look_soon()

    def _flush(self, connection: Connection) -> bool:
        """Send what is queued; return whether the connection is open. If it is not, receiving reports its end."""
        try:
            connection.flush()
        except OSError as error:
            log.debug("event=sending_failed endpoint=%s error=%r", self.endpoint, str(error))
            return False
        return True

    def _lost(self, connection: Connection, error: Exception) -> None:
        log.debug("event=connection_lost endpoint=%s error=%r", self.endpoint, str(error))
        known = connection in self._trusted
        self.drop(connection)
        if known:
            self._on_closed(connection)

    def _forget(self, connection: Connection) -> None:
        self._unauthenticated.gone(connection)
        self._trusted.discard(connection)
        self._unfinished.pop(connection, None)

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.run_callback(self._go_on)

    def _go_on(self) -> None:
        """Look again, whether or not the descriptor is readable: it tells of each news only once."""
        self._looking = False
        unfinished, self._unfinished = self._unfinished, {}
        for connection in unfinished:
            if not self._closed:
                self._pump(connection)
        if not self._closed:
            self._news()

    # -- time limits ------------------------------------------------------------------------------------------------

    def _close_due(self, now: float) -> None:
        """Close connections that have been unauthenticated for too long, or that are too many."""
        for connection in self._unauthenticated.take_due(now):
            self.drop(connection)

    def _tick(self) -> None:
        while True:
            busy = bool(self._unauthenticated) or any(connection.blocked for connection in self._trusted)
            gevent.sleep(_BUSY if busy else _IDLE)
            now = time.monotonic()
            self._close_due(now)
            self._listener.tick(now)
            if self._listener.more:
                self._look_soon()
