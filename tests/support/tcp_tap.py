"""A relay on loopback that records what passes, as a packet capture would."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

__all__ = ["TcpTap"]


class TcpTap:
    """Passes connections on to an address and keeps the bytes of both directions.

    Attributes:
        address: ``127.0.0.1:PORT``, where it listens.

    Args:
        target: ``HOST:PORT``.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._recorded: list[bytes] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def recorded(self) -> bytes:
        """Everything that passed so far."""
        with self._lock:
            return b"".join(self._recorded)

    def _accept(self) -> None:
        with suppress(OSError):  # The listener is closed.
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self._recorded.append(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()
