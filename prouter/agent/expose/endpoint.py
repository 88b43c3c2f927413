"""The agent's loopback HTTP endpoint where jobs report their ports: ``GET <endpoint>?job_id=<uid>&port=<port>``.

The response is 200 ``OK``, or 400 with the reason as text, as in the original. Whoever may list jobs knows their uids,
and whoever is on the machine can connect. So each job's endpoint has a path of its own, which nobody else can guess
(`ReportKeys`): a wrong report would fail a start, or make another of the job's ports its page.

Every process of the machine may connect, so connections are bounded: bytes of a head, seconds, requests, and their
number; the oldest one is closed for the newest. Source: RFC 9112 (message syntax, 9.3
persistence, 9.6 tear-down).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import socket
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from gevent.pool import Pool
from gevent.server import StreamServer

from prouter.errors import InvalidRequest, PRouterError

__all__ = ["PATH", "PortEndpoint", "ReportKeys"]

PATH = "/notify_port"
_VARIABLE = "DA__PAGENT__JOB_ENDPOINT"

_HEAD_MOST = 8192
"""Largest request head in bytes; the original's clients send some 200."""
_PATIENCE = 10.0
"""Longest life of a connection in seconds."""
_REQUESTS = 100
"""Most requests on one connection."""
_CONNECTIONS = 256
_BACKLOG = 512
_PARAMETERS = 16
_DRAINED_MOST = 1 << 16
"""Bytes read and dropped before a close: unread bytes would make the kernel reset the connection."""

_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/1\.([01])")
_END = re.compile(rb"\r?\n\r?\n")

_log = logging.getLogger("prouter.agent")


class _Answered(Exception):
    """The request cannot be read: respond with this status and reason, then close the connection."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class ReportKeys:
    """The last parts of the jobs' endpoints, by which an agent knows that a job reports for itself.

    Args:
        secret: that of an earlier agent whose jobs live on; by default a new one.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.secret = secret or secrets.token_hex(16)

    def of(self, uid: str) -> str:
        """Return a job's key, 32 hex digits."""
        data = uid.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), data, hashlib.sha256).hexdigest()[:32]

    def check(self, uid: str, key: str) -> None:
        """Raise `InvalidRequest` unless the key is that of the job."""
        if not hmac.compare_digest(self.of(uid), key):
            raise InvalidRequest(f"this is not the endpoint of job '{uid:.32}': call the URL in its {_VARIABLE}")


class PortEndpoint:
    """The endpoint's server.

    Args:
        report: called with job uid, port, and the endpoint's last part; its `PRouterError` becomes a 400.
    """

    def __init__(self, report: Callable[[str, int, str], None]) -> None:
        self._report = report
        self._server: StreamServer | None = None
        self._port = 0
        self._connections: dict[socket.socket, None] = {}

    def open(self, port: int | None = None) -> int:
        """Listen on loopback, serve, and return the port.

        Args:
            port: the preferred port, which jobs that outlived an earlier agent know. If it is taken, any other.
        """
        listener = _listen(port or 0) or _listen(0)
        assert listener is not None
        self._server = StreamServer(listener, self._serve, spawn=Pool(2 * _CONNECTIONS))
        self._server.start()
        self._port = int(listener.getsockname()[1])
        return self._port

    def url(self, key: str) -> str:
        """The URL that the job with this key gets as its endpoint."""
        return f"http://127.0.0.1:{self._port}{PATH}/{key}"

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None

    def _serve(self, connection: socket.socket, _peer: object) -> None:
        self._connections[connection] = None
        if len(self._connections) > _CONNECTIONS:
            _wake(next(iter(self._connections)))
        try:
            self._converse(connection, time.monotonic() + _PATIENCE)
        except OSError:
            pass  # Reset, or too slow: nothing is left to answer.
        except Exception:
            _log.exception("event=port_endpoint_failed")
        finally:
            self._connections.pop(connection, None)
            connection.close()

    def _converse(self, connection: socket.socket, deadline: float) -> None:
        data = bytearray()
        for number in range(_REQUESTS):
            try:
                head = _read_head(connection, data, deadline)
                if head is None:
                    return
                stays, status, text = self._answer(head)
            except _Answered as answered:
                stays, status, text = False, answered.status, answered.text
            stays = stays and number + 1 < _REQUESTS
            _in_time(connection, deadline).sendall(_response(status, text, stays=stays))
            if not stays:
                break
        _drain(connection, deadline)

    def _answer(self, head: bytes) -> tuple[bool, str, str]:
        """Answer one request: return whether the connection stays open, the status and the text."""
        line, *fields = head.replace(b"\r\n", b"\n").split(b"\n")
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _Answered("400 Bad Request", "this is not an HTTP/1 request")
        names = {name.strip().lower(): value.strip().lower() for name, _, value in (f.partition(b":") for f in fields)}
        has_body = b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"
        stays = match[3] == b"1" and names.get(b"connection") != b"close" and not has_body
        if match[1] != b"GET":
            raise _Answered("405 Method Not Allowed", "ports are reported with GET")
        try:
            self._take(match[2].decode("ascii"))
        except PRouterError as error:
            return stays, "400 Bad Request", error.detail
        return stays, "200 OK", "OK"

    def _take(self, target: str) -> None:
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=_PARAMETERS)
        except ValueError as error:
            raise InvalidRequest(f"the request's target is not valid: {error}") from None
        path, _, key = parts.path.rstrip("/").removeprefix(PATH).partition("/")
        if path or not parts.path.startswith(PATH):
            raise InvalidRequest(f"ports are reported at the URL in {_VARIABLE}")
        uid, port = _single(query, "job_id"), _single(query, "port")
        if not uid:
            raise InvalidRequest("job_id is missing")
        if not port.isascii() or not port.isdigit() or len(port) > len("65535") or not 0 < int(port) < 65536:
            raise InvalidRequest(f"port must be a number between 1 and 65535, not '{port[:20]}'")
        self._report(uid, int(port), key)


def _single(query: dict[str, list[str]], name: str) -> str:
    values = query.get(name, [""])
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given {len(values)} times")
    return values[0]


def _read_head(connection: socket.socket, data: bytearray, deadline: float) -> bytes | None:
    """Receive the next head; `data` holds bytes received beyond the last one. None at the connection's end.

    Raises:
        OSError: the head is not complete in time.
        _Answered: the head is too long.
    """
    while True:
        del data[: len(data) - len(data.lstrip(b"\r\n"))]  # Empty lines before a request (RFC 9112, 2.2).
        end = _END.search(data)
        if end is not None and end.start() <= _HEAD_MOST:
            head = bytes(data[: end.start()])
            del data[: end.end()]
            return head
        if len(data) > _HEAD_MOST:
            raise _Answered("431 Request Header Fields Too Large", f"a request's head is {_HEAD_MOST} bytes at most")
        received = _in_time(connection, deadline).recv(_HEAD_MOST)
        if not received:
            return None
        data += received


def _in_time(connection: socket.socket, deadline: float) -> socket.socket:
    """Return the connection with a timeout, so that its next operation raises `TimeoutError` at the deadline."""
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    return connection


def _response(status: str, text: str, *, stays: bool) -> bytes:
    body = text.encode("utf-8", "backslashreplace")
    allow = "Allow: GET\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n{allow}"
        f"Connection: {'keep-alive' if stays else 'close'}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _drain(connection: socket.socket, deadline: float) -> None:
    connection.shutdown(socket.SHUT_WR)
    drained = 0
    while drained < _DRAINED_MOST and (data := _in_time(connection, deadline).recv(_HEAD_MOST)):
        drained += len(data)


def _wake(connection: socket.socket) -> None:
    """Shut down a connection, so that its reader sees the end."""
    with contextlib.suppress(OSError):  # The client has closed it already.
        connection.shutdown(socket.SHUT_RDWR)


def _listen(port: int) -> socket.socket | None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        if port == 0:
            raise
        return None
    listener.setblocking(False)
    return listener
