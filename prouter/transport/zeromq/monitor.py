"""News about a ZeroMQ socket's connections: accepted, connected, refused, ended (zmq_socket_monitor(3))."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import zmq

from prouter.transport.zeromq.context import context

__all__ = ["Event", "Monitor"]

_EVENT = struct.Struct("=hi")
_numbers = count(1)


class Event(NamedTuple):
    """One event.

    Attributes:
        kind: one of ``zmq.EVENT_*``.
        value: a descriptor, an errno or a code, by kind.
    """

    kind: int
    value: int


class Monitor:
    """The events of one socket.

    Attributes:
        fd: readable when there may be events.

    Args:
        socket: to be monitored, before it binds or connects.
        kinds: ``zmq.EVENT_*``, or'ed.
    """

    def __init__(self, socket: zmq.Socket[bytes], kinds: int) -> None:
        endpoint = f"inproc://monitor-{next(_numbers)}"
        self._watched = socket
        socket.monitor(endpoint, kinds)
        self._socket = context().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Without a limit: at one, libzmq's I/O thread would wait for this process.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)
        self.fd = int(self._socket.getsockopt(zmq.FD))

    def events(self) -> Iterator[Event]:
        """All that have happened, in order."""
        recv, flags = self._socket.recv, zmq.NOBLOCK
        while True:
            try:
                head = recv(flags)
            except zmq.Again:
                return
            recv(flags)  # the endpoint
            yield Event(*_EVENT.unpack(head))

    def close(self) -> None:
        """Monitor no more. Idempotent."""
        if not self._socket.closed:
            if not self._watched.closed:
                self._watched.disable_monitor()
            self._socket.close()
