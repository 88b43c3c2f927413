"""Message heads: parsing what clients and jobs send, and what of it is passed on.

Parsing is llhttp's (through httptools), strict: whatever two parsers could read differently is refused. Header names
and values stay the bytes that arrived, in order, repeated as often as they came.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import httptools

from prouter.errors import InvalidRequest, JobUnreachable

__all__ = ["HOP_BY_HOP", "BodyKind", "RequestHead", "ResponseHead", "parse_request", "parse_response"]

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of one hop only (RFC 9110 section 7.6.1 and what is in the wild)."""


class BodyKind:
    """How a body is framed."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3


class RequestHead(NamedTuple):
    """A client's request head.

    Attributes:
        version: (major, minor) as ``b"1.1"`` or ``b"1.0"``.
        headers: as sent.
        host: value of Host, empty when there is none.
        body: a `BodyKind`; `length` bytes when it is LENGTH.
        connection: lower-case tokens of Connection.
        upgrade: value of Upgrade when the client asks for one, else empty.
        expect: whether the client waits for 100 Continue.
    """

    method: bytes
    target: bytes
    version: str
    headers: list[Header]
    host: bytes
    body: int
    length: int
    connection: frozenset[bytes]
    upgrade: bytes
    expect: bool

    @property
    def keep_alive(self) -> bool:
        """Whether the client lets the connection live on."""
        if self.version == "1.1":
            return b"close" not in self.connection
        return b"keep-alive" in self.connection


class ResponseHead(NamedTuple):
    """A job's response head; `body` and `length` as in `RequestHead`, before HEAD, 204 and the like are considered."""

    status: int
    reason: bytes
    version: str
    headers: list[Header]
    body: int
    length: int
    connection: frozenset[bytes]

    @property
    def keep_alive(self) -> bool:
        """Whether the job lets the connection live on."""
        if self.version == "1.1":
            return b"close" not in self.connection
        return b"keep-alive" in self.connection


class _Collector:
    """Receives llhttp's callbacks for one head."""

    __slots__ = ("complete", "headers", "on_header", "reason", "target")

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.headers: list[Header] = []
        self.complete = False
        headers = self.headers

        def on_header(name: bytes, value: bytes) -> None:
            headers.append((name, value))

        self.on_header = on_header

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_headers_complete(self) -> None:
        self.complete = True


_EXTENSION_METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ")
_STAND_IN = b"PUT"
"""Parsed in place of a method llhttp does not know; any token is a method (RFC 9110 section 9.1)."""
_NO_TOKENS: frozenset[bytes] = frozenset()


def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in value.split(b",") if token.strip())


def parse_request(head: bytes) -> RequestHead:
    """Parse a request head, from its first byte to the empty line included.

    Raises:
        InvalidRequest: it is not strict HTTP/1.0 or 1.1, or its framing is ambiguous.
    """
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserInvalidMethodError as error:
        extension = _EXTENSION_METHOD.match(head)
        if extension is None or extension[1] == _STAND_IN:
            raise InvalidRequest(f"Invalid request: {error}") from error
        return parse_request(_STAND_IN + head[extension.end(1) :])._replace(method=extension[1])
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"Invalid request: {error}") from error
    version = parser.get_http_version()
    if not collector.complete or version not in ("1.1", "1.0"):
        raise InvalidRequest("Invalid request: not an HTTP/1.1 request head")
    host: bytes | None = None
    body, length = BodyKind.NONE, 0
    connection = _NO_TOKENS
    upgrade = b""
    expect = False
    for name, value in collector.headers:
        key = name.lower()
        if key == b"host":
            if host is not None:
                raise InvalidRequest("Invalid request: more than one Host header")
            host = value
        elif key == b"content-length":
            if body != BodyKind.NONE or not value.isdigit():
                raise InvalidRequest("Invalid request: ambiguous body length")
            body, length = BodyKind.LENGTH, int(value)
        elif key == b"transfer-encoding":
            if body != BodyKind.NONE or value.strip().lower() != b"chunked" or version != "1.1":
                raise InvalidRequest("Invalid request: only one 'Transfer-Encoding: chunked' is understood")
            body = BodyKind.CHUNKED
        elif key == b"connection":
            connection |= _tokens(value)
        elif key == b"upgrade":
            upgrade = value
        elif key == b"expect":
            expect = value.lower() == b"100-continue"
    if host is None and version == "1.1":
        raise InvalidRequest("Invalid request: no Host header")
    if b"upgrade" not in connection or version != "1.1":
        upgrade = b""
    return RequestHead(
        parser.get_method(),
        collector.target,
        version,
        collector.headers,
        host or b"",
        body,
        length,
        connection,
        upgrade,
        expect,
    )


def parse_response(head: bytes) -> ResponseHead:
    """Parse a response head, from its first byte to the empty line included.

    Raises:
        JobUnreachable: it is not HTTP, or its framing is ambiguous.
    """
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise JobUnreachable(f"the job's answer is not valid HTTP: {error}", code="bad_response") from error
    version = parser.get_http_version()
    if not collector.complete or version not in ("1.1", "1.0"):
        raise JobUnreachable("the job's answer is not valid HTTP", code="bad_response")
    body, length = BodyKind.UNTIL_CLOSE, 0
    connection = _NO_TOKENS
    for name, value in collector.headers:
        key = name.lower()
        if key == b"content-length":
            same = body == BodyKind.LENGTH and value.isdigit() and int(value) == length
            if not value.isdigit() or not (body == BodyKind.UNTIL_CLOSE or same):
                raise JobUnreachable("the job's answer has an ambiguous length", code="bad_response")
            body, length = BodyKind.LENGTH, int(value)
        elif key == b"transfer-encoding":
            if body != BodyKind.UNTIL_CLOSE or value.strip().lower() != b"chunked":
                raise JobUnreachable("the job's answer has an ambiguous framing", code="bad_response")
            body = BodyKind.CHUNKED
        elif key == b"connection":
            connection |= _tokens(value)
    return ResponseHead(
        parser.get_status_code(), collector.reason, version, collector.headers, body, length, connection
    )
