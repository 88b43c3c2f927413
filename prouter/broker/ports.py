"""ZeroMQ sockets of the broker, for agents: their options, and the pump that moves messages from them.

High-water marks for sending are off: the streams' windows bound what is in flight, and a send never blocks. Reading
ahead from other machines is bounded: who sends faster than the broker reads has to wait.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import zmq

from prouter.broker.switch import Path, Switch
from prouter.fabric.frames import encode
from prouter.fabric.zmtp import MAX_PART

__all__ = ["Port", "bind_endpoint"]

_HANDSHAKE = 5000
"""Milliseconds a connection has to show that it speaks ZeroMQ."""
_CONNECT_TIMEOUT = 2000
"""Milliseconds an attempt to connect may take before the next, however far apart TCP's own repeats are by then."""
_BACKLOG = 4096
_READ_AHEAD = 1000
"""Messages of one agent's connection that wait here; beyond, the connection is not read (ZMQ_RCVHWM)."""
_DRAIN = 256
"""Messages moved before other sockets get their turn."""
_FRAMES = 4096
"""Most control frames in one message."""

_NEWS = int(zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPTED)
_EVENT = struct.Struct("=HI")
"""A monitor's event: what, and the descriptor (zmq_socket_monitor(3))."""
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE) | _NOBLOCK
_RCVMORE = zmq.RCVMORE


class Port:
    """One socket: a ROUTER with many peers, or a DEALER with one.

    Attributes:
        paths: accepted peers by routing id; a DEALER's only peer is under the empty one.
        monitor: tells of connections that were taken or closed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
        self.socket = socket = context.socket(kind)
        self.router = kind == zmq.ROUTER
        self.paths: dict[bytes, Path] = {}
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, _READ_AHEAD)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        if self.router:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        else:
            socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT)
        self.monitor = socket.get_monitor_socket(_NEWS)

    def close(self, linger: int = 0) -> None:
        """Close; what is queued has `linger` milliseconds to leave in the background."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger)

    def pump(
        self,
        switch: Switch,
        now: float,
        control: Callable[[Port, bytes, Path | None, list[zmq.Frame], float], None],
        unreachable: Callable[[Path, float], None],
    ) -> bool:
        """Move what has arrived, at most `_DRAIN` messages: routed ones to where they go, others to `control`.

        Returns True when nothing is left.
        """
        recv, get, paths, router = self.socket.recv, self.socket.get, self.paths, self.router
        path = paths.get(b"")
        rid = b""
        for _ in range(_DRAIN):
            try:
                route = recv(_NOBLOCK)
            except zmq.Again:
                return True
            if router:
                rid = route
                path = paths.get(rid)
                if not get(_RCVMORE):
                    control(self, rid, path, [], now)
                    continue
                route = recv(_NOBLOCK)
            if not get(_RCVMORE):
                control(self, rid, path, [], now)
                continue
            part: zmq.Frame = recv(_NOBLOCK, False)
            if not route:
                control(self, rid, path, self._rest(part), now)
                continue
            target = path.routes.get(route) if path is not None else None
            if target is None or path is None:
                self._rest(part)
                switch.dropped += 1
                continue
            path.heard = now
            if target.carrier.forward(target, path.source, self._rest(part)):
                switch.routed += 1
            else:
                switch.dropped += 1
                unreachable(target, now)
        return False

    def forward(self, target: Path, source: bytes, parts: Sequence[bytes]) -> bool:
        """Send a message that came from `source`; False when its peer is not reachable."""
        send = self.socket.send
        last = len(parts) - 1
        try:
            if target.rid:
                send(target.rid, _SNDMORE)
            send(source, _SNDMORE)
            for index in range(last):
                send(parts[index], _SNDMORE)
            send(parts[last], _NOBLOCK)
        except zmq.ZMQError as error:
            _check(error)
            return False
        return True

    def send(self, path: Path) -> bool:
        """Send what is pending on `path`; False when its peer is not reachable."""
        frames, path.pending = path.pending, []
        send = self.socket.send
        try:
            for start in range(0, len(frames), _FRAMES):
                parts = encode(frames[start : start + _FRAMES])
                if self.router:
                    send(path.rid, _SNDMORE)
                send(b"", _SNDMORE)
                for part in parts[:-1]:
                    send(part, _SNDMORE)
                send(parts[-1], _NOBLOCK)
        except zmq.ZMQError as error:
            _check(error)
            return False
        return True

    def connection_news(self) -> list[tuple[int, bool]]:
        """Descriptors of the connections that were closed (False) or taken (True) since the last time, in order."""
        found = []
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = self.monitor.recv_multipart(_NOBLOCK)
            kind, fd = _EVENT.unpack(event[0])
            found.append((fd, kind == zmq.EVENT_ACCEPTED))
        return found

    def _rest(self, part: zmq.Frame) -> list[zmq.Frame]:
        """This part and the others of its message."""
        parts = [part]
        while part.more:
            part = self.socket.recv(_NOBLOCK, False)
            parts.append(part)
        return parts


def bind_endpoint(interface: str, port: int) -> str:
    """The ZeroMQ endpoint to bind for an interface; brackets for IPv6."""
    host = f"[{interface}]" if ":" in interface else interface
    return f"tcp://{host}:{port if port else '*'}"


def _check(error: zmq.ZMQError) -> None:
    """Only a peer that is gone or cannot take more is expected."""
    if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
        raise error
