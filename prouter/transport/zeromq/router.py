"""A ZeroMQ ROUTER on the gevent loop: callbacks for messages and lost connections, no blocking call.

A ZeroMQ socket's file descriptor only says "look at me"; sending as well as receiving consumes that hint (see ZMQ_FD in
zmq_getsockopt). So whoever touches the socket looks for messages afterwards, and draining goes on until none is left.
The first hint comes only after somebody has looked once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from gevent import get_hub
from zmq.utils.monitor import parse_monitor_message

from prouter.process.memory import keep_freed_memory
from prouter.transport.local.zmtp import BULKY

__all__ = ["RouterSocket"]

log = logging.getLogger("prouter.transport")

_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)

_DRAIN_BATCH = 128
"""Messages handled before other events of the loop get their turn."""

_HEADS = 3
"""Parts before the bulk parts: routing id, route, block."""
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE) | _NOBLOCK
_POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)
_RCVMORE = int(zmq.RCVMORE)

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's ZeroMQ context; never one that crossed a fork."""
    pid = os.getpid()
    found = _contexts.get(pid)
    if found is None:
        keep_freed_memory()
        found = _contexts[pid] = zmq.Context()
    return found


class RouterSocket:
    """A ZeroMQ ROUTER whose messages arrive as callbacks on the gevent loop.

    Bulk parts of 64 KiB or more arrive as memoryviews, all else as bytes.

    Args:
        on_message: gets each message's parts.
        on_disconnect: called when a connection of the socket ends (TCP or ipc peer gone).
    """

    def __init__(
        self,
        on_message: Callable[[list[bytes]], None],
        on_disconnect: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket = _context().socket(zmq.ROUTER)
        self._get: Callable[[int], Any] = socket.get
        """Like getsockopt, for plain integers: a third of its time."""
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._closed = False
        self._loop = get_hub().loop
        self._drain_scheduled = False
        self._watcher = self._loop.io(int(socket.getsockopt(zmq.FD)), 1)
        self._monitor: zmq.Socket[bytes] | None = None
        if on_disconnect is not None:
            self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._monitor_watcher = self._loop.io(int(self._monitor.getsockopt(zmq.FD)), 1)
            self._monitor_watcher.start(self._drain_monitor)
            self._drain_monitor()
        self._watcher.start(self._drain)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The ZeroMQ socket, for options."""
        return self._socket

    def bind(self, endpoint: str) -> str:
        """Bind to `endpoint`; the endpoint actually bound (port 0 and wildcards resolved)."""
        self._socket.bind(endpoint)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, parts: Sequence[bytes]) -> bool:
        """Queue one message; False when its peer is unknown or the socket closed.

        Nothing blocks: high-water marks are off, the streams' windows bound what is in flight.
        """
        if self._closed:
            return False
        send = self._socket.send
        last = len(parts) - 1
        try:
            for index in range(last):
                send(parts[index], _SNDMORE)
            send(parts[last], _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        if not self._drain_scheduled and self._get(_EVENTS) & _POLLIN:
            self._schedule_drain()
        return True

    def close(self, linger: float = 0) -> None:
        """Close at once; queued messages have `linger` seconds to leave in the background. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._watcher.stop()
        self._watcher.close()
        if self._monitor is not None:
            self._monitor_watcher.stop()
            self._monitor_watcher.close()
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close(int(linger * 1000))

    def _schedule_drain(self) -> None:
        if not self._drain_scheduled:
            self._drain_scheduled = True
            self._loop.run_callback(self._drain_again)

    def _drain_again(self) -> None:
        self._drain_scheduled = False
        self._drain()

    def _drain(self) -> None:
        get = self._get
        for _ in range(_DRAIN_BATCH):
            if self._closed or not get(_EVENTS) & _POLLIN:
                return
            try:
                parts = self._receive()
            except zmq.Again:
                return
            try:
                self._on_message(parts)
            except Exception:
                log.exception("event=message_failed parts=%d", len(parts))
        self._schedule_drain()

    def _receive(self) -> list[bytes]:
        recv, get = self._socket.recv, self._get
        parts = [recv(_NOBLOCK)]
        while get(_RCVMORE):
            if len(parts) < _HEADS:
                parts.append(recv(_NOBLOCK))
            else:
                part: Any = recv(_NOBLOCK, False)
                parts.append(part.buffer if len(part) >= BULKY else part.bytes)
        return parts

    def _drain_monitor(self) -> None:
        monitor = self._monitor
        while not self._closed and monitor is not None and int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            if event["event"] == _DISCONNECTED and self._on_disconnect is not None:
                self._drain()
                if not self._closed:
                    self._on_disconnect()
