"""A DEALER socket on the gevent loop: one attempt to connect, then callbacks for messages and for the end."""

from __future__ import annotations

import _socket
import logging
import os
import socket
from collections.abc import Callable, Sequence
from errno import EINPROGRESS
from typing import Any

import gevent
from gevent import get_hub
from gevent.socket import getaddrinfo, wait_write

from prouter.addresses import split_address
from prouter.errors import ProtocolError
from prouter.process.memory import keep_freed_memory
from prouter.transport.local.wire import Wire

__all__ = ["DealerSocket"]

log = logging.getLogger("prouter.transport")

_CONNECT_TIMEOUT = 2.0
"""Seconds that connecting to one address may take. The kernel resends its SYN at growing intervals, so a fresh attempt
finds a network that is back sooner than an old one."""
_PATIENCE = 0.9
"""Seconds after which `on_trouble` is told that the connection is not established yet."""
_PORTS = "agents connect to the router's server.port (8889), not to control.port (8888)"
_CLOSED = f"the other end closes the connection without a word; {_PORTS}"

_READ, _WRITE = 1, 2
"""Events of libev's watchers."""

Address = tuple[int, Any]
"""Family, and what `connect` takes."""


class DealerSocket:
    """One connection to a ROUTER. It is never made again: who wants another makes a new socket (`Dialler`).

    Parts of 64 KiB or more arrive as memoryviews, all others as bytes. Messages wait for the connection.

    Args:
        endpoint: ``tcp://HOST:PORT`` or ``ipc://PATH`` of a ROUTER. All addresses of the host are tried once.
        on_message: gets each message's parts.
        on_closed: called once, with the reason: no address could be connected to, or the connection ended. Not called
            after `close`.
        identity: routing id that the ROUTER sees, at most 255 bytes.
        first: index of the host's address to try first, modulo their number.
        on_trouble: told in words about each address that failed, and about a connection that takes long.

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
    ) -> None:
        keep_freed_memory()
        self._scheme, _, self._place = endpoint.partition("://")
        if self._scheme == "tcp":
            _host_and_port(self._place)
        elif self._scheme != "ipc":
            raise ValueError(f"{endpoint!r} is no endpoint")
        self._on_message = on_message
        self._on_closed = on_closed
        self._identity = identity
        self._first = first
        self._loop = get_hub().loop
        self._wire: Wire | None = None
        self._readable: Any = None
        self._writable: Any = None
        self._waiting: list[Sequence[bytes]] = []
        """Messages for the first connection."""
        self._closed = False
        self._on_trouble = on_trouble
        self._last_trouble = ""
        self._connecting: Any = gevent.spawn(self._connect)
        get_hub().loop.update_now()  # else its time may be that before a long callback, and the timer up at once
        self._patience: Any = gevent.spawn_later(_PATIENCE, self._takes_long) if on_trouble is not None else None

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send or queue one message; False when the socket is closed. Nothing blocks: the streams' windows bound it."""
        wire = self._wire
        if self._closed:
            return False
        if wire is None or not wire.ready:
            self._waiting.append(parts)
            return True
        wire.queue(parts)
        if not wire.blocked:
            self._flush(wire)
        return True

    def close(self, linger: float = 0) -> None:
        """Close at once; what is queued has `linger` seconds to leave in the background. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        if self._connecting is not None and self._connecting is not gevent.getcurrent():
            self._connecting.kill(block=False)
        if self._patience is not None:
            self._patience.kill(block=False)
        wire = self._wire
        if wire is not None and wire.blocked and linger:
            self._readable.stop()
            gevent.spawn_later(linger, self._drop, wire)
        elif wire is not None:
            self._drop(wire)

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Try each address until one is connected."""
        for address in self._addresses():
            sock = self._attempt(*address)
            if sock is None:
                continue
            try:
                wire = Wire(sock, b"DEALER", b"ROUTER", self._identity)
            except OSError as error:
                # The peer accepted and reset at once: the greeting could not be sent.
                log.debug("event=connection_lost endpoint=%s error=%r", self._place, str(error))
                sock.close()
                self._trouble(_CLOSED)
                continue
            self._connecting = None
            self._start(wire)
            return
        self._connecting = None
        self._end(self._last_trouble)

    def _takes_long(self) -> None:
        """Say what the caller is waiting for, unless something went wrong already and was said."""
        self._patience = None
        wire = self._wire
        if self._last_trouble:
            return
        if wire is None:
            self._trouble("no answer")
        elif not wire.ready:
            self._trouble(f"what listens there says nothing; {_PORTS}")

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

    def _attempt(self, family: int, address: Any) -> _socket.socket | None:
        """Connect to one address; None when that fails."""
        sock = None
        connected = False
        try:
            sock = _socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            error = sock.connect_ex(address)
            if error == EINPROGRESS:
                wait_write(sock.fileno(), timeout=_CONNECT_TIMEOUT)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            connected = not error
            if error:
                self._trouble(os.strerror(error).lower())
        except OSError as failure:
            log.debug("event=connecting_failed endpoint=%s error=%r", self._place, str(failure))
            timed_out = isinstance(failure, TimeoutError)
            self._trouble("no answer" if timed_out else str(failure.strerror or failure).lower())
        finally:
            if sock is not None and not connected:
                sock.close()
        return sock if connected else None

    # -- a connection -----------------------------------------------------------------------------------------------

    def _start(self, wire: Wire) -> None:
        self._wire = wire
        self._readable = self._loop.io(wire.fd, _READ)
        self._writable = self._loop.io(wire.fd, _WRITE)
        self._readable.start(self._arrived, wire)

    def _arrived(self, wire: Wire) -> None:
        introduced = wire.ready
        try:
            messages = wire.receive()
        except (OSError, ProtocolError) as error:
            self._lost(wire, error)
            return
        if wire.ready and not introduced:
            waiting, self._waiting = self._waiting, []
            for parts in waiting:
                wire.queue(parts)
            self._flush(wire)
        for parts in messages:
            if self._wire is not wire or self._closed:
                return
            try:
                self._on_message(parts)
            except Exception:
                log.exception("event=message_failed parts=%d", len(parts))
        if wire.more:
            self._loop.run_callback(self._go_on, wire)

    def _go_on(self, wire: Wire) -> None:
        """There was more than is taken at once."""
        if self._wire is wire and not self._closed:
            self._arrived(wire)

    def _flush(self, wire: Wire) -> None:
        try:
            wire.flush()
        except OSError as error:
            # What has arrived before the end is read first; then reading tells.
            log.debug("event=sending_failed endpoint=%s error=%r", self._place, str(error))
            if self._closed:
                self._drop(wire)
            return
        if wire.blocked:
            if not self._writable.active:
                self._writable.start(self._flush, wire)
        elif self._writable.active:
            self._writable.stop()
            if self._closed:
                self._drop(wire)

    def _lost(self, wire: Wire, error: Exception) -> None:
        if self._wire is not wire:
            return
        log.debug("event=connection_lost endpoint=%s error=%r", self._place, str(error))
        was_ready = wire.ready
        self._drop(wire)
        if was_ready:
            self._end("connection closed")
            return
        if isinstance(error, ProtocolError):
            self._trouble(f"this is no port for agents: {error.detail}; {_PORTS}")
        else:
            self._trouble(_CLOSED)
        self._end(self._last_trouble)

    def _end(self, reason: str) -> None:
        """Report that this socket has no connection and gets none any more."""
        if self._closed:
            return
        self.close()
        self._on_closed(reason)

    def _drop(self, wire: Wire) -> None:
        if self._wire is not wire:
            return
        self._wire = None
        for watcher in (self._readable, self._writable):
            watcher.stop()
            watcher.close()
        wire.close()


def _host_and_port(place: str) -> tuple[str, int]:
    """The parts of an address whose host can be looked up.

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
    """The addresses of a host. Only names need the resolver, which may have the caller wait for a thread."""
    try:
        return _socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return getaddrinfo(host, port, type=socket.SOCK_STREAM)
