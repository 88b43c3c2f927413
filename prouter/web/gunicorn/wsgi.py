"""WSGI (PEP 3333) for requests that are parsed already: the app's environment, and its response as HTTP/1.1.

The head and the first piece of the body leave in one system call. Two calls, and the rest of what gunicorn's own
response class does, would cost more than all of the app's work for a small response (docs/performance.md).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote_to_bytes

from prouter.web.proxy.messages.chunked import LAST_CHUNK, encode_chunk
from prouter.web.proxy.messages.heads import HOP_BY_HOP, BodyKind, RequestHead

__all__ = ["JOINED", "ResponseWriter", "environment", "http_date"]

JOINED = 64 * 1024
"""Bytes of a first piece up to which it is copied behind the head; a larger one is sent separately."""
_BROKEN = re.compile(r"[\r\n\0]")
_HOP_BY_HOP = frozenset(name.decode("ascii") for name in HOP_BY_HOP)
_BASE: dict[str, Any] = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "prouter",
}
_UPGRADE_REQUIRED = 426
_UNPREFIXED = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}

Headers = list[tuple[str, str]]


def environment(head: RequestHead, body: Any, *, scheme: str, client: str, port: int) -> dict[str, Any]:
    """Return the WSGI environment of a request; ``RAW_URI`` is the target as sent.

    Args:
        head: the request's head.
        body: file for ``wsgi.input``.
        scheme: ``http`` or ``https``, as the client used it.
        client: the client's address, empty if unknown.
        port: port that the client connected to.
    """
    target = head.target.decode("latin-1")
    path, _, query = target.partition("?")
    environ = {
        **_BASE,
        "wsgi.errors": sys.stderr,
        "wsgi.input": body,
        "wsgi.url_scheme": scheme,
        "REQUEST_METHOD": head.method.decode("ascii"),
        "RAW_URI": target,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1") if "%" in path else path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/" + head.version,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(port),
        "REMOTE_ADDR": client,
        "REMOTE_PORT": "0",
    }
    for raw_name, raw_value in head.headers:
        if b"_" in raw_name:
            continue
        name, value = raw_name.decode("latin-1").upper(), raw_value.decode("latin-1")
        key = _UNPREFIXED.get(name) or "HTTP_" + name.replace("-", "_")
        if key in environ:
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    if head.body == BodyKind.CHUNKED:
        environ.pop("CONTENT_LENGTH", None)
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    return environ


class ResponseWriter:
    """A response on its way to the client: framed by length, by chunks, or by the connection's end.

    Args:
        head: the request's head.
        send: sends bytes to the client; may block.
        keep_alive: whether the connection may serve another request.
        body_read: called before the head is sent; returns whether all of the request was read. If not, the connection
            cannot serve another request.

    Attributes:
        head_sent: whether it is too late for another response.
    """

    def __init__(
        self,
        head: RequestHead,
        send: Callable[[bytes], None],
        *,
        keep_alive: bool,
        body_read: Callable[[], bool] = lambda: True,
    ) -> None:
        self.head_sent = False
        self._body_read = body_read
        self._request = head
        self._send = send
        self._keep_alive = keep_alive
        self._status = ""
        self._headers: Headers = []
        self._left: int | None = None
        self._chunked = False
        self._bodiless = False

    @property
    def keep_alive(self) -> bool:
        """Whether the client knows where the response ends, so that the connection may serve another request."""
        return self._keep_alive and (self._left == 0 or self._chunked or self._bodiless)

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """Take the status and headers (PEP 3333); those about the connection are replaced."""
        if self._status and (exc_info is None or self.head_sent):
            raise AssertionError("the response has been started already")
        code = int(status[:3])
        self._bodiless = self._request.method == b"HEAD" or code < 200 or code in (204, 304)
        self._left = None
        self._headers = []
        for name, value in headers:
            key = name.lower()
            if key == "content-length":
                if code < 200 or code == 204:
                    continue
                self._left = int(value)
            elif key in _HOP_BY_HOP and (key != "upgrade" or code != _UPGRADE_REQUIRED):
                continue
            self._headers.append((name, value))
        self._status = status
        self._chunked = self._left is None and not self._bodiless and self._request.version == "1.1"
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body, after the head if that is still to be sent.

        Raises:
            ValueError: more bytes than Content-Length says, or a header with a line break.
        """
        data = self._framed(data)
        if self.head_sent:
            if data:
                self._send(data)
            return
        head = self._rendered_head()
        self.head_sent = True
        if len(data) <= JOINED:
            self._send(head + data)
        else:
            self._send(head)
            self._send(data)

    def _framed(self, data: bytes) -> bytes:
        if self._bodiless or not data:
            return b""
        if self._chunked:
            return encode_chunk(data)
        if self._left is not None:
            if len(data) > self._left:
                raise ValueError("the response is longer than its Content-Length")
            self._left -= len(data)
        return data

    def close(self) -> None:
        """End the response.

        Raises:
            ValueError: fewer bytes than Content-Length says.
        """
        if not self.head_sent:
            self.write(b"")
        if self._chunked:
            self._send(LAST_CHUNK)
        elif self._left and not self._bodiless:
            raise ValueError("the response is shorter than its Content-Length")

    def _rendered_head(self) -> bytes:
        self._keep_alive = self._keep_alive and self._body_read()
        persistent = self._keep_alive and (self._left is not None or self._chunked or self._bodiless)
        lines = [f"{name}: {value}" for name, value in self._headers]
        connection = "keep-alive" if persistent else "close"
        if self._status.startswith(str(_UPGRADE_REQUIRED)):
            connection += ", Upgrade"  # RFC 9110 section 7.8
        text = "\r\n".join(
            (
                f"HTTP/1.1 {self._status}",
                f"Date: {http_date()}",
                f"Connection: {connection}",
            )
        )
        if any(_BROKEN.search(line) for line in lines):
            raise ValueError("a header of the response holds a line break")
        framing = "\r\nTransfer-Encoding: chunked" if self._chunked else ""
        return "\r\n".join((text + framing, *lines, "", "")).encode("latin-1")


_dated = (0, "")


def http_date() -> str:
    """Return the value of Date (RFC 9110 section 6.6.1), which is formatted once a second."""
    global _dated
    now = int(time.time())
    if _dated[0] != now:
        _dated = (now, formatdate(now, usegmt=True))
    return _dated[1]
