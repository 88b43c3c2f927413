"""A small blocking HTTP/1.1 client on raw sockets: cheap enough to generate load, and aware of when pieces arrive."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Answer", "BadAnswer", "Connection", "upgrade"]

READ = 1024 * 1024


class BadAnswer(Exception):
    """The response violated HTTP, was cut off, or had an unexpected status."""


class Answer(NamedTuple):
    """A complete response; header names are in lower case, and of repeated ones the last counts."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """One keep-alive connection.

    Args:
        address: ``(host, port)``, or the path of a unix socket.
        timeout: seconds without progress after which a call gives up.
        receive_buffer: bytes of SO_RCVBUF, None for the system's choice.
        source: address to connect from, None for the system's choice.
    """

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        timeout: float = 30.0,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        if source is not None:
            self.sock.bind((source, 0))
        self.sock.connect(address)
        if not isinstance(address, str):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = "localhost" if isinstance(address, str) else f"{address[0]}:{address[1]}"
        self._rest = b""

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def request(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send a request and read the whole response.

        Raises:
            BadAnswer: the answer is malformed or cut off.
            OSError: no connection any more, or no progress.
        """
        self.send_head(method, target, {"Content-Length": str(len(body)), **(headers or {})}, body)
        status, fields = self.read_head()
        return Answer(status, fields, b"".join(bytes(part) for part in self.read_body(fields, method, status)))

    def post(self, target: str, body: Any = None, *, expect: int = 200) -> Any:
        """POST JSON and return the JSON of the response; None if it is empty.

        Raises:
            BadAnswer: another status than `expect`.
        """
        answer = self.request("POST", target, b"" if body is None else json.dumps(body).encode())
        if answer.status != expect:
            raise BadAnswer(f"POST {target}: {answer.status} {answer.body[:500]!r}")
        return answer.json() if answer.body else None

    def send_head(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a request's head, and `body` with it."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {self.host}\r\n{lines}\r\n".encode("latin-1") + body)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of the next final response; what follows them is kept for `read_body`."""
        while True:
            head = self._read_until(b"\r\n\r\n").decode("latin-1")
            line, *lines = head.split("\r\n")
            status = int(line.split(" ", 2)[1])
            if status >= 200 or status == 101:
                pairs = (entry.partition(":") for entry in lines if entry)
                return status, {name.strip().lower(): value.strip() for name, _, value in pairs}

    def read_body(
        self, headers: dict[str, str], method: str = "GET", status: int = 200
    ) -> Iterator[bytes | memoryview]:
        """Yield the body in pieces as they arrive; each is valid until the next.

        Raises:
            BadAnswer: it ended early.
        """
        if method == "HEAD" or status in (204, 304):
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._read_chunks()
        elif "content-length" in headers:
            yield from self._read_exactly(int(headers["content-length"]))
        else:
            while part := self._receive():
                yield part

    def count_body(self, headers: dict[str, str]) -> int:
        """Read the body and return its size."""
        return sum(len(part) for part in self.read_body(headers))

    def _receive(self) -> bytes:
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        return self.sock.recv(65536)

    def _read_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            part = self._receive()
            if not part:
                raise BadAnswer(f"the connection ended after {data[:200]!r}")
            data += part
        found, _, rest = data.partition(mark)
        self._rest = rest
        return found

    def _read_exactly(self, size: int) -> Iterator[bytes | memoryview]:
        if self._rest and size:
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            yield part
        if not size:
            return
        view = memoryview(bytearray(min(size, READ)))
        while size:
            count = self.sock.recv_into(view, min(size, READ))
            if not count:
                raise BadAnswer(f"the body ended {size} bytes early")
            size -= count
            yield view[:count]

    def _read_chunks(self) -> Iterator[bytes | memoryview]:
        """Yield chunks from large reads, in which the chunk borders are looked for."""
        view = memoryview(bytearray(READ))
        data: bytes | memoryview = self._rest
        self._rest = b""
        left, line = 0, b""
        while True:
            at = 0
            while at < len(data):
                if left > 2:
                    take = min(left - 2, len(data) - at)
                    yield data[at : at + take]
                elif left:
                    take = min(left, len(data) - at)
                else:
                    piece, newline, _ = bytes(data[at : at + 32]).partition(b"\n")
                    line += piece
                    at += len(piece) + len(newline)
                    if newline:
                        left, line = int(line.partition(b";")[0], 16) + 2, b""
                        if left == 2:
                            self._end_chunks(bytes(data[at:]))
                            return
                    continue
                at += take
                left -= take
            count = self.sock.recv_into(view)
            if not count:
                raise BadAnswer("the body ended before its last chunk")
            data = view[:count]

    def _end_chunks(self, rest: bytes) -> None:
        """Read trailers and the empty line."""
        self._rest = rest
        while self._read_until(b"\r\n"):
            pass


def upgrade(connection: Connection, target: str) -> None:
    """Turn the connection into a WebSocket.

    Raises:
        BadAnswer: refused.
    """
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    connection.send_head("GET", target, headers)
    status, _ = connection.read_head()
    if status != 101:
        raise BadAnswer(f"no upgrade: {status}")
