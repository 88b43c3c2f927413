"""Message heads of clients and jobs, parsed.

llhttp parses them (through httptools) in its strict mode, and what two parsers could read differently is refused.
Header names and values stay the bytes that arrived, in their order, repeated as often as they arrived.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import NamedTuple

import httptools

from prouter.errors import InvalidRequest, JobUnreachable, PRouterError

__all__ = [
    "HOP_BY_HOP",
    "BodyKind",
    "HeadTooLarge",
    "RequestHead",
    "ResponseHead",
    "may_become_request",
    "parse_request",
    "parse_response",
    "take_request",
]

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
"""Fields for one hop only (RFC 9110 section 7.6.1, and others in use)."""
_READ_IN_RESPONSES = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""Fields that matter to the proxy itself."""
_READ_IN_REQUESTS = _READ_IN_RESPONSES | {b"expect", b"host", b"upgrade"}
_FOR_ALL_HOPS = frozenset({b"content-length", b"host"})
"""Fields that Connection must not remove: the body would become the next request, or the request another job's."""


class HeadTooLarge(PRouterError):
    """The request head is larger than ``control.max_head``."""

    code = "head_too_large"
    status = 431
    level = logging.INFO


class BodyKind:
    """The framing of a body."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3


class RequestHead(NamedTuple):
    """A client's request head.

    Attributes:
        version: ``1.1`` or ``1.0``.
        headers: as sent.
        host: value of Host; ``localhost`` for an HTTP/1.0 client that sends none.
        body: a `BodyKind`; `length` bytes when it is LENGTH.
        connection: lower-case tokens of Connection.
        upgrade: protocols of Upgrade if the client asks for an upgrade, without those that carry requests; else empty.
        expect: whether the client waits for ``100 Continue``.
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
        """Whether the client lets the connection persist (RFC 9112 section 9.3)."""
        if self.version == "1.1":
            return b"close" not in self.connection
        return b"keep-alive" in self.connection


class ResponseHead(NamedTuple):
    """A job's response head; `body` and `length` are what its fields say, whatever the method or status imply."""

    status: int
    reason: bytes
    version: str
    headers: list[Header]
    body: int
    length: int
    connection: frozenset[bytes]

    @property
    def keep_alive(self) -> bool:
        """Whether the connection to the job can be reused; not after chunks in HTTP/1.0 (RFC 9112 section 6.1)."""
        if self.version == "1.1":
            return b"close" not in self.connection
        return b"keep-alive" in self.connection and self.body != BodyKind.CHUNKED


class _Collector:
    """The callbacks of llhttp for one head."""

    __slots__ = ("complete", "headers", "on_header", "reason", "target")

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.headers: list[Header] = []
        self.complete = False
        headers = self.headers

        def on_header(name: bytes, value: bytes) -> None:
            headers.append((name, value.rstrip(b" \t")))  # llhttp keeps trailing whitespace (RFC 9112 section 5)

        self.on_header = on_header

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_headers_complete(self) -> None:
        self.complete = True


_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) +([!-~\x80-\xff]+) HTTP/1\.[01]\r\n")
_METHOD_SO_FAR = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}(?: |\Z)")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_STAND_IN = b"PUT"
"""Stands in for a method that llhttp does not know: any token is a method (RFC 9110 section 9.1)."""
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%~_-]+\]|[!$%&'()*+,.0-9;=A-Z_a-z~-]*)(?::[0-9]*)?")
"""A host and port (RFC 3986 section 3.2), without user information."""
_BROKEN_REASON = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LONGEST = 512
"""Bytes of a host name with its port."""
_LONGEST_REASON = 8192
"""Bytes of the text in a status line."""
_SHOWN = 80
"""Bytes of a value shown in an error."""
_CARRY_REQUESTS = frozenset({b"", b"h2", b"h2c", b"http", b"tls"})
"""Protocols of Upgrade in which more requests follow."""
_NO_HOST = b"localhost"
_NO_TOKENS: frozenset[bytes] = frozenset()


@lru_cache(32)
def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in value.split(b",") if token.strip()) - _FOR_ALL_HOPS


@lru_cache(32)
def _tunnelled(upgrade: bytes) -> bytes:
    """Return the protocols of Upgrade that a tunnel to the job may carry.

    Requests inside a tunnel would reach the job with whatever forwarded fields and user their client invents.
    """
    protocols = [protocol.strip() for protocol in upgrade.split(b",")]
    return b", ".join(one for one in protocols if one.partition(b"/")[0].strip().lower() not in _CARRY_REQUESTS)


@lru_cache(32)
def _is_host(value: bytes) -> bool:
    return len(value) <= _LONGEST and _HOST.fullmatch(value) is not None


def _with_stand_ins(head: bytes) -> RequestHead | None:
    """Parse a request head whose method or target llhttp does not know, with stand-ins for these.

    Returns:
        The head, None if neither is the reason why llhttp refused it.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        return None
    target = _NOT_ASCII.sub(b"x", line[2])
    if line[1] == _STAND_IN and target == line[2]:
        return None
    parsed = parse_request(b"%s %s%s" % (_STAND_IN, target, head[line.end(2) :]))
    method, target = line[1], line[2]
    return parsed._replace(method=method, target=target if target[:1] == b"/" else _origin_form(method, target)[1])


def _origin_form(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return (host, path and query) of a target in absolute form (RFC 9112 section 3.2.2).

    Raises:
        InvalidRequest: the target is not an http or https URL.
    """
    scheme, separator, rest = target.partition(b"://")
    end = next((index for index, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    host, path = rest[:end], rest[end:]
    if not separator or scheme.lower() not in (b"http", b"https") or not host or not _is_host(host):
        raise InvalidRequest("Invalid request: the target is neither a path nor an http URL")
    if not path and method == b"OPTIONS":
        return host, b"*"
    return host, path if path.startswith(b"/") else b"/" + path


def may_become_request(data: bytes) -> bool:
    """Return whether more bytes may make `data` a request head; TLS and HTTP/0.9 differ in their first bytes."""
    if _METHOD_SO_FAR.match(data) is None:
        return False
    end = data.find(b"\r\n")
    return end < 0 or data[end - 9 : end - 1] == b" HTTP/1."


def take_request(data: bytes, limit: int) -> tuple[RequestHead, bytes, bytes] | None:
    """Take a request head from the beginning of `data`.

    Args:
        data: bytes of the client; no line break at the beginning.
        limit: largest size of a head, in bytes.

    Returns:
        The head, its raw bytes, and the bytes after it; None if more bytes have to come.

    Raises:
        HeadTooLarge: the head is larger than `limit`.
        InvalidRequest: the bytes are no head of HTTP/1, and more bytes make none of them.
    """
    end = data.find(b"\r\n\r\n")
    if 0 <= end <= limit:
        raw = data[: end + 4]
        return parse_request(raw), raw, data[end + 4 :]
    if len(data) > limit:
        raise HeadTooLarge(f"the request head is larger than {limit} bytes, the limit control.max_head")
    if b"\n\n" in data:
        raise InvalidRequest("Invalid request: lines must end with CRLF")
    if not may_become_request(data):
        raise InvalidRequest("Invalid request: not the head of an HTTP/1.0 or HTTP/1.1 request")
    return None


def parse_request(head: bytes) -> RequestHead:
    """Parse a request head, up to and including its empty line.

    The host of a target in absolute form replaces Host and leaves the target (RFC 9112 section 3.2.2).

    Raises:
        InvalidRequest: the head is not strict HTTP/1.0 or 1.1, or its framing is ambiguous.
    """
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        parsed = _with_stand_ins(head)
        if parsed is None:
            raise InvalidRequest(f"Invalid request: {error}") from error
        return parsed
    version = parser.get_http_version()
    end = head.find(b"\r\n")
    if not collector.complete or version not in ("1.1", "1.0") or head[end - 9 : end - 1] != b" HTTP/1.":
        raise InvalidRequest("Invalid request: not the head of an HTTP/1.0 or HTTP/1.1 request")
    headers = collector.headers
    host, body, length, connection, upgrade, expect = _request_fields(headers, version)
    if host is None:
        if version == "1.1":
            raise InvalidRequest("Invalid request: no Host header, which HTTP/1.1 requires")
        host = _NO_HOST
        headers.append((b"Host", host))
    if upgrade:  # It counts only if Connection names it, and not in HTTP/1.0 (RFC 9110 section 7.8)
        upgrade = _tunnelled(upgrade) if b"upgrade" in connection and version == "1.1" else b""
    method, target = parser.get_method(), collector.target
    if target[:1] != b"/" and method != b"CONNECT" and not (method == b"OPTIONS" and target == b"*"):
        host, target = _origin_form(method, target)
        headers = [(name, host if name.lower() == b"host" else value) for name, value in headers]
    return RequestHead(method, target, version, headers, host, body, length, connection, upgrade, expect)


def _request_fields(
    headers: list[Header], version: str
) -> tuple[bytes | None, int, int, frozenset[bytes], bytes, bool]:
    """Return (host, body, length, connection, upgrade, expect) as the fields of a request have them.

    Whatever two parsers could read differently is refused, even if the two readings agree: a front end that reads it
    otherwise would let a client smuggle a request past it (RFC 9112 section 11.2).

    Raises:
        InvalidRequest: Host or the framing is ambiguous.
    """
    host: bytes | None = None
    body, length = BodyKind.NONE, 0
    connection = _NO_TOKENS
    upgrade = b""
    expect = False
    for name, value in headers:
        key = name.lower()
        if key not in _READ_IN_REQUESTS:
            continue
        if key == b"host":
            if host is not None:
                raise InvalidRequest("Invalid request: more than one Host header: send one")
            if not _is_host(value):
                raise InvalidRequest("Invalid request: Host is not a host name with an optional port")
            host = value
        elif key == b"content-length":
            if body != BodyKind.NONE or not value.isdigit():
                raise InvalidRequest(
                    "Invalid request: ambiguous body length: Content-Length must be one number, without another framing"
                )
            body, length = BodyKind.LENGTH, int(value)
        elif key == b"transfer-encoding":
            if body != BodyKind.NONE or value.strip().lower() != b"chunked" or version != "1.1":
                raise InvalidRequest(
                    "Invalid request: Transfer-Encoding must be one 'chunked', in HTTP/1.1, without Content-Length"
                )
            body = BodyKind.CHUNKED
        elif key == b"connection":
            connection |= _tokens(value)
        elif key == b"upgrade":
            upgrade = b"%s, %s" % (upgrade, value) if upgrade else value
        elif key == b"expect":
            expect = value.lower() == b"100-continue" and version == "1.1"  # RFC 9110 section 10.1.1
    return host, body, length, connection, upgrade, expect


def parse_response(head: bytes) -> ResponseHead:
    """Parse a response head, up to and including its empty line.

    Raises:
        JobUnreachable: the head is not HTTP, or its framing is ambiguous.
    """
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise JobUnreachable(f"the job's response is not valid HTTP: {error}", code="bad_response") from error
    version = parser.get_http_version()
    if not collector.complete or version not in ("1.1", "1.0") or head[:7] != b"HTTP/1.":
        raise JobUnreachable("the job's response is not valid HTTP", code="bad_response")
    if parser.get_status_code() < 100 or _BROKEN_REASON.search(collector.reason):
        raise JobUnreachable("the job's response has an invalid status line", code="bad_response")
    if len(collector.reason) > _LONGEST_REASON:
        detail = f"the job's response has a status line of more than {_LONGEST_REASON} bytes"
        raise JobUnreachable(detail, code="bad_response")
    body, length, connection = _response_fields(collector.headers)
    return ResponseHead(
        parser.get_status_code(), collector.reason, version, collector.headers, body, length, connection
    )


def _response_fields(headers: list[Header]) -> tuple[int, int, frozenset[bytes]]:
    """Return (body, length, connection) as the fields of a response have them.

    Raises:
        JobUnreachable: the framing is ambiguous: the client could take a part of the body for the next response.
    """
    body, length = BodyKind.UNTIL_CLOSE, 0
    connection = _NO_TOKENS
    for name, value in headers:
        key = name.lower()
        if key not in _READ_IN_RESPONSES:
            continue
        if key == b"content-length":
            same = body == BodyKind.LENGTH and value.isdigit() and int(value) == length
            if not value.isdigit() or not (body == BodyKind.UNTIL_CLOSE or same):
                detail = (
                    "the job's response has an ambiguous length: its Content-Length is no number, or not the only one"
                )
                raise JobUnreachable(detail, code="bad_response")
            body, length = BodyKind.LENGTH, int(value)
        elif key == b"transfer-encoding":
            if body != BodyKind.UNTIL_CLOSE or value.strip().lower() != b"chunked":
                shown = value[:_SHOWN].decode("ascii", "backslashreplace")
                detail = f"the job's response is framed ambiguously: Transfer-Encoding is '{shown}', not one 'chunked'"
                raise JobUnreachable(detail, code="bad_response")
            body = BodyKind.CHUNKED
        elif key == b"connection":
            connection |= _tokens(value)
    return body, length, connection
