"""A relay on loopback that cuts connections after some bytes, as a bad network does."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["CuttingRelay", "randomly"]

Plan = Callable[[int], int | None]
"""Tells after how many bytes from the server the connection with this number is cut; None for never."""

_RESET = struct.pack("ii", 1, 0)


def randomly(seed: int, most: int, *, connections: int) -> Plan:
    """Cut the first `connections` connections after up to `most` bytes."""
    rng = random.Random(seed)
    cuts = [rng.randrange(most) for _ in range(connections)]
    return lambda number: cuts[number] if number < connections else None


class CuttingRelay:
    """Passes connections on to an address.

    Attributes:
        url: ``http://127.0.0.1:PORT``, where it listens.
        plan: when connections are cut; may be changed at any time, for new connections.
        count: connections so far.
        cut: connections that were cut.

    Args:
        target: the server's URL.
        upwards: whether bytes to the server count instead of those from it.
    """

    def __init__(self, target: str, plan: Plan = lambda _: None, *, upwards: bool = False) -> None:
        host, _, port = target.removeprefix("http://").rstrip("/").rpartition(":")
        self._target = (host, int(port))
        self._upwards = upwards
        self.plan = plan
        self.count = 0
        self.cut = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept nobody any more, and cut what is open."""
        with suppress(OSError):  # Closing alone leaves it to accept one more, as `accept` is under way.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Reset all open connections."""
        with self._lock:
            ends = list(self._open)
            self.cut += len(ends) // 2
        for end in ends:
            _reset(end)

    def _accept(self) -> None:
        with suppress(OSError):  # The listener is closed.
            while True:
                client = self._listener.accept()[0]
                limit = self.plan(self.count)
                self.count += 1
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    _reset(client)
                    continue
                with self._lock:
                    self._open |= {client, server}
                down, up = (None, limit) if self._upwards else (limit, None)
                for source, sink, most in ((client, server, up), (server, client, down)):
                    threading.Thread(target=self._pump, args=(source, sink, most), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if most is not None and len(data) >= most:
                    sink.sendall(data[:most])
                    self.cut += 1
                    _reset(source)
                    _reset(sink)
                    break
                most = most - len(data) if most is not None else None
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(end: socket.socket) -> None:
    """Close a connection so that the other end notices at once, as after a cut."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)
