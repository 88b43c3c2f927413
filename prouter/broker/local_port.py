"""Where workers connect: a unix socket that speaks ZMTP, as a ROUTER does, on the broker's own loop.

Each connection is the carrier of one worker's path. The broker's other sockets are ZeroMQ's (`prouter.broker.ports`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import zmq

from prouter.broker.switch import Path, Switch
from prouter.fabric.frames import encode
from prouter.fabric.zmtp import BULKY
from prouter.transport.wire import Wire

__all__ = ["LocalListener", "LocalPort"]

log = logging.getLogger("prouter.broker")

_BACKLOG = 1024
_FRAMES = 4096
"""Most control frames in one message."""


class LocalListener:
    """The listening socket.

    Args:
        path: of the socket; the caller holds the lock of its directory.
        dirty: where connections put themselves that want to be flushed.

    Raises:
        OSError: it cannot be bound.
    """

    def __init__(self, path: FilePath, dirty: list[LocalPort]) -> None:
        self._path = path
        self._dirty = dirty
        path.unlink(missing_ok=True)  # a killed broker's
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        self._socket.listen(_BACKLOG)
        self.fd = self._socket.fileno()

    def accept(self) -> LocalPort | None:
        """The next connection that has been made.

        Raises:
            OSError: it cannot be taken.
        """
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return None
        return LocalPort(sock, self._dirty)

    def close(self) -> None:
        """Take nobody any more. Idempotent."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


class LocalPort:
    """One connection.

    Attributes:
        paths: the worker's path under the empty routing id, once it is accepted.
        fd: what to watch; -1 when it is closed.
        waits: whether it is watched until it is writable, too.
    """

    router = False

    def __init__(self, sock: socket.socket, dirty: list[LocalPort]) -> None:
        self.paths: dict[bytes, Path] = {}
        self._wire = Wire(sock, b"ROUTER", b"DEALER")
        self.fd = self._wire.fd
        self.waits = False
        self._dirty = dirty
        self._marked = False

    @property
    def blocked(self) -> bool:
        """Whether `flush` is to be called again when the socket is writable."""
        return self._wire.blocked

    def pump(
        self,
        switch: Switch,
        now: float,
        control: Callable[[LocalPort, bytes, Path | None, Sequence[bytes], float], None],
        unreachable: Callable[[Path, float], None],
    ) -> None:
        """Move what has arrived, or part of it: routed messages to where they go, others to `control`.

        Raises:
            OSError: the connection is closed, and everything that came before was moved.
            ProtocolError: what comes is not ZMTP.
        """
        for route, *parts in self._wire.receive():
            path = self.paths.get(b"")
            if not route or not parts:
                control(self, b"", path, parts, now)
                continue
            target = path.routes.get(bytes(route)) if path is not None else None
            if target is None or path is None:
                switch.dropped += 1
                continue
            path.heard = now
            if target.carrier.forward(target, path.source, parts):
                switch.routed += 1
            else:
                switch.dropped += 1
                unreachable(target, now)

    def forward(self, target: Path, source: bytes, parts: Sequence[zmq.Frame]) -> bool:
        """Queue a message that came from `source`; True."""
        taken: list[Any] = [part.buffer if len(part) >= BULKY else part.bytes for part in parts]
        self._queue([source, *taken])
        return True

    def send(self, path: Path) -> bool:
        """Queue what is pending on `path`; True."""
        frames, path.pending = path.pending, []
        for start in range(0, len(frames), _FRAMES):
            self._queue([b"", *encode(frames[start : start + _FRAMES])])
        return True

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it. That the connection is closed, `pump` will tell."""
        self._marked = False
        if self.fd < 0:
            return
        try:
            self._wire.flush()
        except OSError as error:
            log.debug("event=worker_unreachable fd=%d error=%r", self.fd, str(error))

    def close(self, linger: int = 0) -> None:
        """Close; what is queued has `linger` milliseconds to leave, during which this blocks. Idempotent."""
        if self.fd >= 0:
            self.fd = -1
            self._wire.finish(linger / 1000)

    def _queue(self, parts: Sequence[bytes]) -> None:
        self._wire.queue(parts)
        if not self._marked:
            self._marked = True
            self._dirty.append(self)
