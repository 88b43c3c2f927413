"""A ROUTER socket that listens on tcp, taken apart into one connection per peer.

libzmq gives the messages of all peers through one socket, in turns. This module keeps a connection for each descriptor
that libzmq accepted (the monitor tells), learns its routing id with its first message (whose ZMQ_SRCFD names the
descriptor), and delivers messages by routing id from then on. What libzmq does not do itself:

- Closing one peer: its TCP connection is shut down (descriptors.py), and libzmq sees the end.
- Telling of a connection's end after its last message: an ended connection counts as closed once the socket had nothing
  left, or once each peer had so many turns that nothing of it can be left.
- Bounding a message that has not arrived whole: what the kernel received is compared with what was delivered.
- Changing the server's key without a gap and without dropping connections: the listening descriptor belongs to this
  module, libzmq gets duplicates, and the one with the old key is turned away from the port.

The socket's descriptor only says "look at me", and sending consumes that hint as well as receiving (ZMQ_FD in
zmq_getsockopt(3)). So whoever has sent looks whether something has arrived (`RouterListener.more`).
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from prouter.addresses import tcp_endpoint
from prouter.fabric.bounds import MAX_PART
from prouter.key_pairs import KeyPair
from prouter.process.memory import resident_memory
from prouter.transport.zeromq.acceptors import unreachable_listener
from prouter.transport.zeromq.context import context
from prouter.transport.zeromq.curve import apply_server_curve
from prouter.transport.zeromq.monitor import Monitor
from prouter.transport.zeromq.parts import EVENTS, NOBLOCK, POLLIN, SNDMORE, fast_calls, receive_rest, send_parts
from prouter.transport.zeromq.router_connection import RouterConnection
from prouter.transport.zeromq.zap import authenticator
from prouter.transport.zmtp.accepting import listen_tcp
from prouter.transport.zmtp.server_keys import ServerCurve

__all__ = ["RouterListener"]

_MESSAGES = 64
"""Messages received before other events of the loop get their turn."""
_BYTES = 4 * 1024 * 1024
"""Bytes likewise."""
_UNAUTHENTICATED = 8
"""Unauthenticated connections that are heard at once; one alone while more is left, maybe heartbeats of agents."""
_SEND_QUEUE = 16
"""Messages that libzmq holds for a peer that does not read, beside what the kernel takes."""
_RECEIVE_QUEUE = 16
"""Messages of a peer that libzmq reads ahead."""
_HANDSHAKE = 30_000
"""Milliseconds for libzmq's handshake; who uses the connection has limits of its own."""
_RETRIED = 8
"""Blocked connections that are tried again whenever libzmq has news; all of them are at each tick."""
_INSPECTED = 128
"""Connections that a tick inspects for messages that do not arrive whole."""
_GROWTH = 16 * 1024 * 1024
"""Bytes by which the process may grow between two ticks before all connections are inspected."""
_SLACK = 4096
"""Bytes of ZMTP's and CURVE's handshakes, beside an introduction."""

_ACCEPTED, _DISCONNECTED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_SRCFD = int(zmq.SRCFD)


class RouterListener:
    """A ROUTER that listens; see `prouter.transport.connection.Listener`.

    Args:
        interface: address to listen on.
        port: 0 for any that is free.
        curve: encryption; None for none.
        limit: bytes that a peer may send before it is authenticated.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, interface: str, port: int, *, curve: ServerCurve | None = None, limit: int = 64 * 1024) -> None:
        self._bound = listen_tcp(interface, port)
        host, number = self._bound.getsockname()[:2]
        self.endpoint = tcp_endpoint(host, number)
        self._limit = limit
        self._curve = curve
        self._socket = socket_ = context().socket(zmq.ROUTER)
        self._recv, self._send = fast_calls(socket_)
        self._get: Callable[[int], Any] = socket_.get
        """Like getsockopt, for plain integers: a third of its time."""
        self._accepting = -1
        """Descriptor of libzmq's acceptor."""
        self._retired: list[int] = []
        """Those of acceptors with earlier keys."""
        self._nobody: socket.socket | None = None
        self._authenticator = authenticator()
        self._domain = self._authenticator.register(curve.accepts if curve is not None else None)
        self._by_pipe: dict[int, RouterConnection] = {}
        self._by_identity: dict[bytes, RouterConnection] = {}
        self._new: list[RouterConnection] = []
        self._ending: dict[RouterConnection, int] = {}
        """Ended connections whose messages may not all be delivered, and how many had been received by then."""
        self._introducing: OrderedDict[RouterConnection, None] = OrderedDict()
        """Unauthenticated connections that wait to be heard."""
        self._arrived: dict[RouterConnection, None] = {}
        self._blocked: OrderedDict[RouterConnection, None] = OrderedDict()
        self._leaving: dict[RouterConnection, float] = {}
        """Connections that are shut down later, and when."""
        self._inspecting: deque[RouterConnection] = deque()
        self._resident = resident_memory()
        self._received = 0
        self._touched = False
        self._closed = False
        self._configure()
        self._monitor = Monitor(socket_, int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED))
        self._poll = select.epoll()
        self.fd = self._poll.fileno()
        for fd in (int(socket_.getsockopt(zmq.FD)), self._monitor.fd, self._authenticator.fd):
            self._poll.register(fd, select.EPOLLIN)
        self._bind()
        # A descriptor of libzmq tells of what comes after it was looked at for the first time.
        self._follow()
        self._authenticator.answer()
        self._more = True

    def _configure(self) -> None:
        set_option = self._socket.setsockopt
        set_option(zmq.LINGER, 0)
        # Sending tells of a peer that is gone or does not read, instead of dropping the message.
        set_option(zmq.ROUTER_MANDATORY, 1)
        # A second connection with the same routing id does not displace the first.
        set_option(zmq.ROUTER_HANDOVER, 0)
        set_option(zmq.SNDHWM, _SEND_QUEUE)
        set_option(zmq.RCVHWM, _RECEIVE_QUEUE)
        set_option(zmq.MAXMSGSIZE, MAX_PART)
        set_option(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        # The fabric has heartbeats of its own, which tell silence from a closed connection.
        set_option(zmq.HEARTBEAT_IVL, 0)
        set_option(zmq.TCP_KEEPALIVE, 0)
        set_option(zmq.IPV6, int(self._bound.family == socket.AF_INET6))
        # With a domain libzmq refuses ZMTP 1 and 2, whose messages do not name their connection, and garbage that it
        # would take for them. Without a handler nobody gets in, rather than everybody.
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, self._domain)
        set_option(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self._curve is not None:
            apply_server_curve(self._curve, self._socket)

    def _bind(self) -> None:
        # A duplicate: libzmq closes the descriptor that it is given.
        self._accepting = os.dup(self._bound.fileno())
        self._socket.setsockopt(zmq.USE_FD, self._accepting)
        self._socket.bind(self.endpoint)

    @property
    def more(self) -> bool:
        """Whether something has arrived that `fd` may not tell of."""
        if self._touched and not self._more:
            self._touched = False
            # A ROUTER does not say which peer takes more, and looking at its events consumes the hint that one does.
            # So while some are blocked, the hint itself counts.
            self._more = bool(self._blocked and self._poll.poll(0)) or bool(self._get(EVENTS) & POLLIN)
        return self._more

    @property
    def connections(self) -> int:
        """Connections that libzmq has open."""
        return len(self._by_pipe)

    def change_key(self, pair: KeyPair) -> None:
        """Have new connections use another server key; those that exist live on, and none is refused meanwhile."""
        if self._curve is None or self._curve.pair == pair:
            return
        self._curve = ServerCurve(pair, self._curve.accepts)
        # Unbinding would end the connections that were accepted there. So libzmq keeps the acceptor with the old key,
        # which accepts from a socket that nobody can reach.
        if self._nobody is None:
            self._nobody = unreachable_listener()
        os.dup2(self._nobody.fileno(), self._accepting, inheritable=False)
        self._retired.append(self._accepting)
        apply_server_curve(self._curve, self._socket)
        self._bind()

    # -- what happens -------------------------------------------------------------------------------------------------

    def accept(self) -> list[RouterConnection]:
        """Connections that were made since. Their handshakes are not over, and some may have ended already."""
        ready = [fd for fd, _ in self._poll.poll(0)]
        if self._authenticator.more or self._authenticator.fd in ready:
            self._authenticator.answer()
        if self._monitor.fd in ready:
            self._follow()
        new, self._new = self._new, []
        return new

    def _follow(self) -> None:
        """Note which connections libzmq has accepted and lost."""
        by_pipe = self._by_pipe
        for kind, value in self._monitor.events():
            if kind == _ACCEPTED:
                by_pipe[value] = connection = RouterConnection(self, value)
                self._new.append(connection)
                self._inspecting.append(connection)
            elif kind == _DISCONNECTED:
                gone = by_pipe.pop(value, None)
                if gone is not None:
                    self._lose(gone)

    def arrived(self) -> Sequence[RouterConnection]:
        """Connections that have something to receive, have ended, or may be flushed again."""
        self._more = self._touched = False
        if self._blocked:
            self._retry(_RETRIED)
        arrived = self._arrived
        self._receive(arrived)
        if self._ending:
            self._finish_ended(arrived)
        for _ in range(min(1 if self._more else _UNAUTHENTICATED, len(self._introducing))):
            arrived[self._introducing.popitem(last=False)[0]] = None
        if self._introducing or self._new or self._authenticator.more:
            self._more = True
        self._arrived = {}
        if not self._new:
            return list(arrived)
        fresh = set(self._new)  # The caller must hear of a connection before it hears from it.
        self._arrived = dict.fromkeys(one for one in arrived if one in fresh)
        return [one for one in arrived if one not in fresh]

    def _receive(self, arrived: dict[RouterConnection, None]) -> None:
        """Deliver what libzmq has, or part of it."""
        recv, by_identity = self._recv, self._by_identity
        size = 0
        for count in range(_MESSAGES):
            try:
                # Mostly one message has come; asking whether it was the only one takes half as long as a failed recv.
                if count == 1 and not self._get(EVENTS) & POLLIN:
                    break
                identity = recv(NOBLOCK)
            except zmq.Again:
                break
            connection = by_identity.get(identity)
            frame = recv(NOBLOCK, False)
            if connection is None:
                connection = self._identify(identity, frame)
            parts: list[Any] = [frame.bytes]
            size += receive_rest(recv, frame, parts)
            self._received += 1
            if connection is None:
                continue
            connection.deliver(parts, self._limit)
            if connection.trusted:
                arrived[connection] = None
            else:
                self._introducing[connection] = None
            if size > _BYTES:
                self._more = True
                return
        else:
            self._more = True
            return
        self._drained()

    def _identify(self, identity: bytes, frame: zmq.Frame) -> RouterConnection | None:
        """The connection of a first message, which names libzmq's descriptor.

        The number may have been that of an earlier connection, which ended before its first message was read. Then the
        two change places: the later one speaks with the earlier one's routing id until its own message comes.
        """
        self._follow()
        try:
            pipe = frame.get(_SRCFD)
        except zmq.ZMQError:
            return None  # Of an earlier version of ZMTP; libzmq refuses those.
        connection = self._by_pipe.get(pipe)
        if connection is None:
            silent = (one for one in self._ending if one.pipe == pipe and not one.identity)
            connection = next(silent, None) or self._unexpected(pipe, is_open=False)
        elif connection.identity:
            self._lose(connection)
            connection = self._unexpected(pipe, is_open=True)
        connection.identity = identity
        if self._curve is not None:
            connection.peer_key = str(frame.get("User-Id"))
        self._by_identity[identity] = connection
        return connection

    def _unexpected(self, pipe: int, *, is_open: bool) -> RouterConnection:
        """A connection for a message that belongs to none of those that are known."""
        connection = RouterConnection(self, pipe)
        self._new.append(connection)
        if is_open:
            self._by_pipe[pipe] = connection
            self._inspecting.append(connection)
        else:
            self._lose(connection)
        return connection

    def _lose(self, connection: RouterConnection) -> None:
        """libzmq has closed a connection, of which messages may be left."""
        connection.lost()
        self._ending[connection] = self._received

    def _drained(self) -> None:
        """Nothing is left of ended connections either."""
        for connection in self._ending:
            self._ending[connection] = -1

    def _finish_ended(self, arrived: dict[RouterConnection, None]) -> None:
        """Tell of ended connections whose messages were all delivered."""
        turns = 2 * _RECEIVE_QUEUE * (len(self._by_identity) + 1)
        for connection, before in list(self._ending.items()):
            if before < 0 or self._received - before > turns:
                del self._ending[connection]
                if self._by_identity.get(connection.identity) is connection:
                    del self._by_identity[connection.identity]
                self._blocked.pop(connection, None)
                self._leaving.pop(connection, None)
                connection.end()
                if not connection.closed:
                    arrived[connection] = None

    def tick(self, now: float) -> None:
        """Look after time limits, messages that do not arrive whole, and peers that do not read."""
        for connection in [one for one, until in self._leaving.items() if until <= now]:
            del self._leaving[connection]
            connection.close()
        self._inspect()
        self._retry(len(self._blocked))
        if self._arrived:
            self._more = True

    def _inspect(self) -> None:
        """Compare what the kernel received with what was delivered: of some in turns, of all when memory has grown."""
        resident = resident_memory()
        grown = resident > self._resident + _GROWTH
        self._resident = resident
        for _ in range(len(self._inspecting) if grown else min(_INSPECTED, len(self._inspecting))):
            connection = self._inspecting.popleft()
            if connection.closed or not connection.pipe_open:
                continue
            self._inspecting.append(connection)
            if connection.inspect(self._limit + _SLACK):
                self._arrived[connection] = None

    def _retry(self, most: int) -> None:
        """Have blocked connections flushed again."""
        for _ in range(min(most, len(self._blocked))):
            self._arrived[self._blocked.popitem(last=False)[0]] = None

    def close(self, linger: float = 0) -> None:
        """Close all; what is queued has `linger` seconds to leave in the background. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not linger:
            # libzmq ends a connection only after the ZAP handler's socket was used again, which may be never.
            for connection in self._by_pipe.values():
                connection.shut_down()
        self._poll.close()
        self._monitor.close()
        for fd in self._retired:
            # libzmq takes its descriptors out of its epoll set, which must find the sockets that it put there.
            os.dup2(self._bound.fileno(), fd, inheritable=False)
        if self._nobody is not None:
            self._nobody.close()
        self._socket.close(int(linger * 1000))
        self._bound.close()
        self._authenticator.forget(self._domain)

    # -- called by connections ----------------------------------------------------------------------------------------

    def hand_over(self, identity: bytes, parts: Sequence[bytes]) -> bool:
        """Give libzmq a message; False when the peer has not read enough of those before.

        Raises:
            OSError: the peer is gone.
        """
        send = self._send
        self._touched = True
        try:
            send(identity, SNDMORE)
            send_parts(send, parts)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise OSError(error.errno, str(error)) from error
        return True

    def retry(self, connection: RouterConnection) -> None:
        """Return a connection that is blocked from `arrived` when its peer may have read."""
        self._blocked[connection] = None

    def again(self, connection: RouterConnection) -> None:
        """Return a connection from `arrived` once more: it has an end to tell."""
        self._arrived[connection] = None
        self._more = True

    def close_later(self, connection: RouterConnection, seconds: float) -> None:
        """Shut a connection down after so long."""
        self._leaving[connection] = time.monotonic() + seconds
