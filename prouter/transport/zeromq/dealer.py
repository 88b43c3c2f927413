"""A DEALER socket that dials one ROUTER once: one connection, from its first attempt to its end.

libzmq would reconnect by itself, each socket at a pace of its own. Here it does not (ZMQ_RECONNECT_IVL -1): whoever
dials makes a fresh socket for each attempt. So no message of an earlier connection surfaces on a later one, and one
backoff rules all attempts.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_PART
from prouter.transport.zeromq.context import context
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.descriptors import Undelivered, cookie_of
from prouter.transport.zeromq.monitor import Monitor
from prouter.transport.zeromq.parts import (
    EVENTS,
    NOBLOCK,
    POLLIN,
    POLLOUT,
    check_size,
    fast_calls,
    queued_size,
    receive_rest,
    send_parts,
)

__all__ = ["DealerConnection", "NotConnected"]

_MESSAGES = 64
"""Messages received before other events of the loop get their turn."""
_BYTES = 4 * 1024 * 1024
"""Bytes likewise."""
_SEND_QUEUE = 16
"""Messages that libzmq holds for a peer that does not read, beside what the kernel takes."""
_RECEIVE_QUEUE = 16
"""Messages of the peer that libzmq reads ahead."""
_HANDSHAKE = 30_000
"""Milliseconds for libzmq's handshake; who uses the connection has limits of its own."""
_UNGUESSABLE = 8
"""Random bytes at the end of a routing id: who could guess it might take it first, or again after this connection."""
_CONNECTED, _CLOSED = int(zmq.EVENT_CONNECTED), int(zmq.EVENT_CLOSED)
_DISCONNECTED, _SUCCEEDED = int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_NO_DETAIL = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_PROTOCOL, _AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL), int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_KINDS = _CONNECTED | _CLOSED | _DISCONNECTED | _SUCCEEDED | _NO_DETAIL | _PROTOCOL | _AUTH
_MECHANISM_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)


class NotConnected(ConnectionError):
    """No TCP connection was made; libzmq does not tell why, a plain connect to the same address does."""


class DealerConnection:
    """A connection that is being made, and then is used; see `prouter.transport.connection.Connection`.

    Args:
        endpoint: ``tcp://ADDRESS:PORT``. The address must be numeric: libzmq's thread would wait for the resolver.
        identity: routing id for the other end to know this one by; random bytes are added.
        curve: encryption; None for none.
        timeout: seconds that TCP gets to connect.

    Raises:
        ValueError: the endpoint or a key is none.
    """

    def __init__(
        self, endpoint: str, identity: bytes = b"", *, curve: ClientCurve | None = None, timeout: float = 2.0
    ) -> None:
        self.identity = b""
        self.peer_key = curve.server_key if curve is not None else ""
        self.ready = self.connected = self.blocked = False
        self.taken = self.sent = 0
        self._undelivered: Undelivered | None = None
        self._curve = curve
        self._out: deque[Sequence[bytes]] = deque()
        self._failure: Exception | None = None
        self._touched = False
        self._more = True
        self._closed = False
        self._socket = socket = context().socket(zmq.DEALER)
        self._recv, self._send = fast_calls(socket)
        self._get: Callable[[int], Any] = socket.get
        try:
            self._configure(identity, timeout)
            self._monitor = Monitor(socket, _KINDS)
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                self._monitor.close()
                raise ValueError(f"{endpoint!r} is no endpoint with a numeric address") from error
        except ValueError:
            socket.close(0)
            raise
        self._poll = select.epoll()
        self.fd = self._poll.fileno()
        for fd in (int(socket.getsockopt(zmq.FD)), self._monitor.fd):
            self._poll.register(fd, select.EPOLLIN)
        # A descriptor of libzmq tells of what comes after it was looked at for the first time.
        self._follow()

    def _configure(self, identity: bytes, timeout: float) -> None:
        set_option = self._socket.setsockopt
        set_option(zmq.LINGER, 0)
        set_option(zmq.RECONNECT_IVL, -1)
        set_option(zmq.CONNECT_TIMEOUT, int(timeout * 1000))
        set_option(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        set_option(zmq.SNDHWM, _SEND_QUEUE)
        set_option(zmq.RCVHWM, _RECEIVE_QUEUE)
        set_option(zmq.MAXMSGSIZE, MAX_PART)
        set_option(zmq.HEARTBEAT_IVL, 0)
        set_option(zmq.TCP_KEEPALIVE, 0)
        set_option(zmq.IPV6, 1)
        set_option(zmq.ROUTING_ID, identity + os.urandom(_UNGUESSABLE).hex().encode())
        if self._curve is not None:
            self._curve.apply(self._socket)

    @property
    def more(self) -> bool:
        """Whether `receive` or `flush` has work that `fd` may not tell of: sending consumes its hint, too."""
        if self._touched and not self._more and not self._closed:
            self._touched = False
            # Looking consumes the hint that a blocked send may go on, so this has to tell of it.
            awaited = POLLIN | POLLOUT if self.blocked else POLLIN
            self._more = bool(self._get(EVENTS) & awaited)
        return self._more

    def trust(self) -> None:
        """Nothing: who dials has no limits of its own for the other end."""

    def receive(self) -> list[list[bytes]]:
        """Messages that have arrived, in order; perhaps not all of them.

        Raises:
            NotConnected: no TCP connection could be made.
            OSError: the connection has ended, and all that came before was returned.
            ProtocolError: the other end is no ROUTER, refuses this end's key or breaks ZMTP.
        """
        if self._closed:
            raise ConnectionResetError("closed by this end")
        self._more = self._touched = False
        messages = self._drain() if self.ready else []
        # Its news are rare and do not go away: they can wait until there are no messages.
        if not messages:
            if self._monitor.fd in [fd for fd, _ in self._poll.poll(0)]:
                self._follow()
                messages = self._drain()
            elif not self.ready:
                self._get(
                    EVENTS
                )  # Of a connection that is being made: it has nothing to tell, but makes `fd` readable.
        if self._failure is not None:
            if not messages:
                raise self._failure
            self._more = True
        return messages

    def _follow(self) -> None:
        """Note what has become of the connection."""
        for kind, value in self._monitor.events():
            if kind == _CONNECTED:
                self.connected = True
                self._undelivered = Undelivered(value, cookie_of(value))
            elif kind == _SUCCEEDED:
                self.ready = True
                self._more = True
            elif self._failure is not None:
                continue
            elif kind == _CLOSED:
                self._failure = NotConnected("no connection")
            elif kind == _DISCONNECTED:
                self._failure = ConnectionResetError("closed by the other end")
            else:
                self._failure = self._refusal(kind, value)

    def _refusal(self, kind: int, value: int) -> Exception:
        """What a failed handshake means."""
        if kind == _AUTH:
            return ProtocolError("the other end does not accept this end's key")
        if kind == _PROTOCOL and value == _MECHANISM_MISMATCH:
            if self._curve is not None:
                return ProtocolError(
                    "the other end does not encrypt (see its server.curve), and this end knows a key of it"
                )
            return ProtocolError("the other end wants encryption, and this end does not know its public key")
        if kind == _PROTOCOL:
            return ProtocolError(f"the other end does not speak ZMTP 3 (code {value:#x})")
        if self._curve is not None:
            return ProtocolError("the encrypted handshake failed: the address or the key of the other end may be wrong")
        return ConnectionResetError("closed by the other end during the handshake")

    def _drain(self) -> list[list[Any]]:
        recv = self._recv
        messages: list[list[Any]] = []
        size = 0
        for count in range(_MESSAGES):
            try:
                # Mostly one message has come; asking whether it was the only one takes half as long as a failed recv.
                if count == 1 and not self._get(EVENTS) & POLLIN:
                    return messages
                frame = recv(NOBLOCK, False)
            except zmq.Again:
                return messages
            parts: list[Any] = [frame.bytes]
            size += receive_rest(recv, frame, parts)
            messages.append(parts)
            if self._undelivered is not None:
                self._undelivered.delivered = True
            if size > _BYTES:
                break
        self._more = True
        return messages

    def inspect(self) -> bool:
        """Measure `unfinished`; whether it has changed. To be called now and then."""
        return self._undelivered is not None and self._undelivered.measure()

    @property
    def unfinished(self) -> int:
        """Bytes that have arrived and were not received yet, as of the last `inspect`."""
        return self._undelivered.size if self._undelivered is not None else 0

    def queue(self, parts: Sequence[bytes]) -> None:
        """Have a message sent by the next `flush`.

        Raises:
            ProtocolError: it is larger than the other end accepts.
        """
        check_size(parts)
        self._out.append(parts)
        self.taken += queued_size(parts)

    def flush(self) -> None:
        """Hand libzmq what it takes. While `blocked`, call it again when `fd` is readable."""
        out, send = self._out, self._send
        self.blocked = False
        if not self.ready or self._closed:
            return
        while out:
            parts = out[0]
            self._touched = True
            try:
                send_parts(send, parts)
            except zmq.Again:
                self.blocked = True
                return
            out.popleft()
            self.sent += queued_size(parts)

    def finish(self, seconds: float) -> None:
        """Close; libzmq's thread has so many seconds to send what it was handed. Does not block."""
        if not self._closed:
            self.flush()
            self._close(seconds)

    def close(self) -> None:
        """Close at once. Idempotent."""
        if not self._closed:
            self._close(0)

    def _close(self, linger: float) -> None:
        self._closed = True
        self._more = self.ready = False
        self._out.clear()
        self.fd = -1
        self._poll.close()
        self._monitor.close()
        self._socket.close(int(linger * 1000))
