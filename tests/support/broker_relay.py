"""A relay between workers and their broker, which can hold back what the broker sends to some workers."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Collection

import psutil

from tests.support.processes import Router, wait_until

__all__ = ["BrokerRelay"]

_PEER = struct.Struct("iII")
"""Layout of a peer's credentials: pid, uid and gid (unix(7), SO_PEERCRED)."""


class BrokerRelay:
    """Takes the place of the socket at which a router's workers find the broker; its workers are replaced.

    Attributes:
        said: how many bytes each worker, by pid, has sent to the broker.
    """

    def __init__(self, router: Router, workers: int) -> None:
        self.said: dict[int, int] = {}
        self._held: frozenset[int] = frozenset()
        self._workers: dict[socket.socket, int] = {}
        """The worker's pid for each socket."""
        self._backlog: dict[socket.socket, bytes] = {}
        """For each worker's socket, what is held back from it."""
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._sockets: set[socket.socket] = set()
        self._stop_read, self._stop_write = os.pipe()
        place = router.directory / "run" / "broker.ipc"
        self._broker = place.rename(place.with_suffix(".real"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        gunicorn = psutil.Process(router.child("gunicorn"))
        for child in gunicorn.children():
            child.send_signal(signal.SIGKILL)
        self.pids: list[int] = wait_until(lambda: self._linked(gunicorn, workers))

    def _linked(self, gunicorn: psutil.Process, workers: int) -> list[int]:
        pids = [child.pid for child in gunicorn.children() if self.said.get(child.pid)]
        return pids if len(pids) == workers else []

    def hold(self, pids: Collection[int]) -> None:
        """Hold back what the broker sends to these workers from now on; the others get what was held back."""
        with self._lock:
            self._held = frozenset(pids)
            for worker, data in list(self._backlog.items()):
                if self._workers[worker] not in self._held:
                    del self._backlog[worker]
                    worker.sendall(data)

    def close(self) -> None:
        """End the relay; workers link to the broker itself again."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._listener.close()
        self._broker.rename(self._broker.with_suffix(".ipc"))
        for sock in self._sockets:
            sock.close()
        self._selector.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._stop_read:
                    return
                else:
                    self._move(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        worker, _ = self._listener.accept()
        broker = socket.socket(socket.AF_UNIX)
        broker.connect(str(self._broker))
        self._workers[worker] = _pid(worker)
        for sock, other in ((worker, broker), (broker, worker)):
            self._sockets.add(sock)
            self._selector.register(sock, selectors.EVENT_READ, other)

    def _move(self, source: socket.socket, target: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if data:
                self._pass_on(source, target, data)
        except OSError:
            data = b""
        if not data:
            for sock in (source, target):
                self._selector.unregister(sock)
                self._sockets.discard(sock)
                sock.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        with self._lock:
            if source in self._workers:
                pid = self._workers[source]
                self.said[pid] = self.said.get(pid, 0) + len(data)
            elif self._workers[target] in self._held or target in self._backlog:
                self._backlog[target] = self._backlog.get(target, b"") + data
                return
            target.sendall(data)


def _pid(worker: socket.socket) -> int:
    """Return the pid of the process at the other end."""
    return int(_PEER.unpack(worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0])
