"""A DEALER socket on the gevent loop: one attempt to connect, then callbacks for messages and for the end.

The endpoint's scheme decides about the transport, here and nowhere else: ``tcp://`` is pyzmq
(`prouter.transport.zeromq`), ``ipc://`` is ZMTP on this process's own loop (`prouter.transport.zmtp`).
"""

from __future__ import annotations

import _socket
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent import get_hub
from gevent.socket import getaddrinfo

from prouter.addresses import split_address, tcp_endpoint
from prouter.errors import ProtocolError
from prouter.process.memory import keep_freed_memory
from prouter.transport.connection import Connection
from prouter.transport.probe import CLOSED, NO_ANSWER, NO_ENCRYPTION, WANTS_ENCRYPTION, Address, probe
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection, NotConnected
from prouter.transport.zmtp.wire import Wire

__all__ = ["DealerSocket"]

log = logging.getLogger("prouter.transport")

_CONNECT_TIMEOUT = 2.0
"""Seconds that connecting to one address may take. The kernel resends its SYN at growing intervals, so a fresh attempt
finds a network that is back sooner than an old one."""
_PATIENCE = 0.9
"""Seconds after which `on_trouble` is told that the connection is not established yet."""

_READ, _WRITE = 1, 2
"""Events of libev's watchers."""


class DealerSocket:
    """One connection to a ROUTER. It is never made again: who wants another makes a new socket (`Dialler`).

    Parts of 64 KiB or more arrive as memoryviews, all others as bytes. Messages wait for the connection.

    Args:
        endpoint: ``tcp://HOST:PORT`` or ``ipc://PATH`` of a ROUTER. All addresses of the host are tried once.
        on_message: gets each message's parts.
        on_closed: called once, with the reason: no address could be connected to, or the connection ended. Not called
            after `close`.
        identity: beginning of the routing id that the ROUTER sees, at most 200 bytes.
        first: index of the host's address to try first, modulo their number.
        on_trouble: told in words about each address that failed, and about a connection that takes long.
        curve: keys for encryption; only tcp uses them.
        explain: whether a failed address may be probed for the reason, with a second TCP connection.
        on_ready: called once the transport's handshake is over; messages that were sent before leave then.

    Raises:
        ValueError: `endpoint` is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        on_message: Callable[[list[bytes]], None],
        on_closed: Callable[[str], None],
        identity: bytes = b"",
        first: int = 0,
        on_trouble: Callable[[str], None] | None = None,
        curve: ClientCurve | None = None,
        explain: bool = True,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        keep_freed_memory()
        self._scheme, _, self._place = endpoint.partition("://")
        if self._scheme == "tcp":
            _host_and_port(self._place)
        elif self._scheme != "ipc":
            raise ValueError(f"{endpoint!r} is no endpoint")
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_ready = on_ready
        self._identity = identity
        self._first = first
        self._on_trouble = on_trouble
        self._curve = curve
        self._explains = explain
        self._loop = get_hub().loop
        self._connection: Connection | None = None
        self._address: Address | None = None
        self._others: list[Address] = []
        """Addresses that are still to be tried."""
        self._began = 0.0
        self._readable: Any = None
        self._writable: Any = None
        self._waiting: list[Sequence[bytes]] = []
        """Messages for the connection that is being made."""
        self._ready = False
        self._closed = False
        self._looking = False
        """Whether the loop is to call `_go_on` soon."""
        self._last_trouble = ""
        self._work: Any = gevent.spawn(self._connect)
        """The greenlet that looks up, connects or probes."""
        self._loop.update_now()  # Else its time may be that before a long callback, and the timer due at once.
        self._patience: Any = gevent.spawn_later(_PATIENCE, self._takes_long) if self._explains else None

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send or queue one message; False when the socket is closed. Nothing blocks: the streams' windows bound it."""
        connection = self._connection
        if self._closed:
            return False
        if connection is None or not self._ready:
            self._waiting.append(parts)
            return True
        connection.queue(parts)
        if not connection.blocked:
            self._flush(connection)
        return True

    def close(self, linger: float = 0) -> None:
        """Close at once; what is queued has `linger` seconds to leave in the background. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        for greenlet in (self._work, self._patience):
            if greenlet is not None and greenlet is not gevent.getcurrent():
                greenlet.kill(block=False)
        connection = self._connection
        if connection is None:
            return
        if linger and connection.blocked:
            gevent.spawn_later(linger, self._drop, connection)
        else:
            self._drop(connection, linger)

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Look up the host's addresses and try the first."""
        self._others = self._addresses()
        self._try_next()

    def _try_next(self) -> None:
        """Start connecting to the next address. Its end tries the one after it."""
        self._work = None
        while self._others and not self._closed:
            self._address = address = self._others.pop(0)
            self._began = time.monotonic()
            try:
                self._watch(self._open(address))
            except OSError as error:
                log.debug("event=connecting_failed endpoint=%s error=%r", self._place, str(error))
                self._trouble(str(error.strerror or error).lower())
            else:
                return
        self._end(self._last_trouble or f"{self._place}: no connection")

    def _open(self, address: Address) -> Connection:
        """Start a connection.

        Raises:
            OSError: it fails at once.
        """
        if self._scheme == "tcp":
            host, port = address[1][:2]
            return DealerConnection(
                tcp_endpoint(host, port), self._identity, curve=self._curve, timeout=_CONNECT_TIMEOUT
            )
        sock = _socket.socket(*_UNIX)
        try:
            sock.setblocking(False)  # A unix socket connects at once, or fails when the other end's backlog is full.
            sock.connect(address[1])
            return Wire(sock, b"DEALER", b"ROUTER", self._identity)
        except OSError:
            sock.close()
            raise

    def _takes_long(self) -> None:
        """Say what the caller is waiting for, unless something went wrong already and was said."""
        self._patience = None
        if self._last_trouble or self._ready or self._closed:
            return
        if self._scheme == "tcp" and self._address is not None and _connected(self._connection):
            self._work = gevent.spawn(self._explain, self._address)
        else:
            self._trouble(NO_ANSWER)

    def _explain(self, address: Address) -> None:
        """Say what is wrong with an address that takes TCP connections."""
        found = probe(address)
        if found and not self._ready:
            self._trouble(found)

    def _trouble(self, text: str) -> None:
        self._last_trouble = f"{self._place}: {text}"
        if self._on_trouble is not None and not self._closed:
            self._on_trouble(self._last_trouble)

    def _addresses(self) -> list[Address]:
        if self._scheme == "ipc":
            return [(socket.AF_UNIX, self._place)]
        host, port = _host_and_port(self._place)
        try:
            found = _looked_up(host, port)
        except OSError as error:
            log.debug("event=address_not_found host=%s error=%r", host, str(error))
            self._trouble(f"the name cannot be looked up: {error.strerror or error}")
            return []
        first = self._first % len(found)
        return [(entry[0], entry[4]) for entry in found[first:] + found[:first]]

    # -- a connection -----------------------------------------------------------------------------------------------

    def _watch(self, connection: Connection) -> None:
        self._connection = connection
        self._readable = self._loop.io(connection.fd, _READ)
        self._writable = self._loop.io(connection.fd, _WRITE)
        self._readable.start(self._arrived, connection)
        # libzmq's descriptor tells of news only after somebody has looked once.
        self._look_soon(connection)

    def _arrived(self, connection: Connection) -> None:
        """Take what has arrived; a descriptor of libzmq also becomes readable when it takes more."""
        if self._closed:
            self._flush(connection)  # Its last messages are leaving; nothing is received any more.
            return
        try:
            messages = connection.receive()
        except (OSError, ProtocolError) as error:
            self._lost(connection, error)
            return
        if connection.ready and not self._ready:
            self._ready = True
            waiting, self._waiting = self._waiting, []
            for parts in waiting:
                connection.queue(parts)
            self._flush(connection)
            if self._on_ready is not None:
                self._on_ready()
        elif connection.blocked:
            self._flush(connection)
        for parts in messages:
            if self._connection is not connection or self._closed:
                return
            try:
                self._on_message(parts)
            except Exception:
                log.exception("event=message_failed parts=%d", len(parts))
        if connection.more:
            self._look_soon(connection)

    def _look_soon(self, connection: Connection) -> None:
        """Receive once more in the loop's next iteration, whether or not the descriptor is readable."""
        if not self._looking:
            self._looking = True
            self._loop.run_callback(self._go_on, connection)

    def _go_on(self, connection: Connection) -> None:
        self._looking = False
        if self._connection is connection:
            self._arrived(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except OSError as error:
            # What arrived before the end is received first; then `receive` reports the end.
            log.debug("event=sending_failed endpoint=%s error=%r", self._place, str(error))
            if self._closed:
                self._drop(connection)
            return
        if connection.blocked:
            if not self._writable.active:
                self._writable.start(self._flush, connection)
        else:
            if self._writable.active:
                self._writable.stop()
            if self._closed:
                self._drop(connection, _LAST_WORDS)
                return
        # Also while it is blocked: libzmq's descriptor may have told its news to the send that failed.
        if connection.more:
            self._look_soon(connection)

    def _lost(self, connection: Connection, error: Exception) -> None:
        if self._connection is not connection:
            return
        log.debug("event=connection_lost endpoint=%s error=%r", self._place, str(error))
        self._drop(connection)
        if self._ready:
            self._end("connection closed")
        elif self._scheme == "tcp":
            self._work = gevent.spawn(self._failed, error)
        else:
            self._trouble(f"this is no socket for agents: {_refusal(error)}; {_SOCKETS}")
            self._try_next()

    def _failed(self, error: Exception) -> None:
        """Say why an address did not become a connection, and try the next. Runs in a greenlet, since it may probe."""
        assert self._address is not None
        if isinstance(error, NotConnected) and time.monotonic() - self._began > _CONNECT_TIMEOUT / 2:
            self._trouble(NO_ANSWER)
        elif self._explains or not isinstance(error, NotConnected):
            self._trouble(self._finding(error, self._address))
        self._try_next()

    def _finding(self, error: Exception, address: Address) -> str:
        """Return in words why a TCP connection or a handshake failed."""
        told = _refusal(error) if isinstance(error, ProtocolError) else CLOSED
        if not self._explains:
            return told
        found = probe(address)
        if self._curve is None or isinstance(error, NotConnected):
            return found or told
        # The probe does not encrypt, so it succeeds exactly where this socket must not.
        return {WANTS_ENCRYPTION: told, "": NO_ENCRYPTION}.get(found, found)

    def _end(self, reason: str) -> None:
        """Report that this socket has no connection and gets none any more."""
        if self._closed:
            return
        self.close()
        self._on_closed(reason)

    def _drop(self, connection: Connection, linger: float = 0) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        for watcher in (self._readable, self._writable):
            watcher.stop()
            watcher.close()
        if linger:
            connection.finish(linger)
        else:
            connection.close()


_SOCKETS = "agents connect to the router's server.socket"
_UNIX = (socket.AF_UNIX, socket.SOCK_STREAM)
_LAST_WORDS = 1.0
"""Seconds that libzmq has to send the last messages of a closed socket, once it has taken them all."""


def _connected(connection: Connection | None) -> bool:
    return isinstance(connection, DealerConnection) and connection.connected


def _refusal(error: Exception) -> str:
    """A failed handshake in words."""
    return error.detail if isinstance(error, ProtocolError) else str(error)


def _host_and_port(place: str) -> tuple[str, int]:
    """Split an address whose host can be looked up.

    Raises:
        ValueError: it is something else.
    """
    try:
        host, port = split_address(place)
        host.encode("idna")
    except ValueError as error:
        raise ValueError(f"{place!r} is no host:port") from error
    return host, port


def _looked_up(host: str, port: int) -> list[Any]:
    """Look up the addresses of a host. Only names need the resolver, which may have the caller wait for a thread."""
    try:
        return _socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return getaddrinfo(host, port, type=socket.SOCK_STREAM)
