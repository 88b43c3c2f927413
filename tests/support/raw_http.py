"""An HTTP client at socket level, which sends and shows exact bytes."""

from __future__ import annotations

import socket
from types import TracebackType
from urllib.parse import urlsplit

__all__ = ["Raw", "exchange"]


class Raw:
    """One connection.

    Attributes:
        received: everything read so far and not taken.
        cut: whether the other side reset the connection.
    """

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.sock = socket.create_connection((parts.hostname, parts.port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.cut = False

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        target: str,
        headers: str = "",
        body: bytes = b"",
        version: str = "1.1",
        host: str = "router.localhost",
    ) -> None:
        """Send a request; `headers` are whole lines; with an empty `host` there is no Host but one of those."""
        named = f"Host: {host}\r\n" if host else ""
        head = f"{method} {target} HTTP/{version}\r\n{named}{headers}\r\n"
        self.send(head.encode("latin-1") + body)

    def read_until(self, marker: bytes) -> bytes:
        """Read everything up to and including `marker`.

        Raises:
            EOFError: the connection ended before.
        """
        while marker not in self.received:
            if not self._read():
                raise EOFError(self.received)
        taken, _, self.received = self.received.partition(marker)
        return taken + marker

    def read_exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        while len(self.received) < size:
            if not self._read():
                raise EOFError(self.received)
        taken, self.received = self.received[:size], self.received[size:]
        return taken

    def read_to_end(self) -> bytes:
        """Read until the other side closes or resets the connection (`cut`)."""
        while self._read():
            pass
        taken, self.received = self.received, b""
        return taken

    def _read(self) -> bool:
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            self.cut = True
            return False
        self.received += data
        return bool(data)


def exchange(
    url: str,
    method: str,
    target: str,
    headers: str = "",
    body: bytes = b"",
    version: str = "1.1",
    timeout: float = 10.0,
    host: str = "router.localhost",
) -> tuple[bytes, bool]:
    """Send one request with ``Connection: close``; return all bytes of the response, and whether it was cut off."""
    with Raw(url, timeout) as raw:
        raw.request(method, target, headers + "Connection: close\r\n", body, version, host)
        return raw.read_to_end(), raw.cut
