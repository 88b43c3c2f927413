"""What changes in a head on its way: forwarded headers, the public prefix, framing. Everything else passes untouched.

A job's public prefix is ``/jobs/<connection>/<job>/http``. With path mode ``strip`` the job sees paths without it, so
paths in its Location and Set-Cookie are put under it; with ``keep`` the job knows its prefix and nothing is rewritten.
"""

from __future__ import annotations

from typing import NamedTuple

from prouter.api.proxy.heads import HOP_BY_HOP, BodyKind, RequestHead, ResponseHead

__all__ = ["Origin", "public_proto", "request_to_job", "response_to_client"]

_FORWARDED = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)

_FORWARDED_BLOCK = (
    b"X-Forwarded-For: %s\r\nX-Forwarded-Host: %s\r\nX-Forwarded-Proto: %s\r\nX-Forwarded-Prefix: %s\r\n"
    b"Forwarded: %s\r\n"
)


class Origin(NamedTuple):
    """How the client reached us: what forwarded headers say.

    Attributes:
        address: the client's address as the socket tells it, ``unix`` for a unix socket.
        port: port of our listener the client connected to, 0 for a unix socket.
        trusted: whether incoming forwarded headers are believed.
    """

    address: str
    port: int
    trusted: bool


def _first(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return b""


def _forwarded(head: RequestHead, origin: Origin, prefix: bytes) -> bytes:
    """The block of forwarded headers for the job (X-Forwarded-* and RFC 7239)."""
    address = origin.address.encode("ascii")
    node = b'"[%s]"' % address if b":" in address else (address if origin.address != "unix" else b"unknown")
    host = head.host
    proto = b"http"
    port = b"%d" % origin.port if origin.port else b""
    chain = address
    element = b'for=%s;host="%s";proto=' % (node, host.replace(b"\\", b"").replace(b'"', b""))
    outer = b""
    if origin.trusted:
        seen = _first(head.headers, b"x-forwarded-for")
        believed = [value for name, value in head.headers if name.lower() == b"x-forwarded-for"]
        if seen:
            chain = b", ".join(believed)
            if origin.address != "unix":
                chain += b", " + address
        proto = _first(head.headers, b"x-forwarded-proto").strip().lower() or proto
        host = _first(head.headers, b"x-forwarded-host") or host
        port = _first(head.headers, b"x-forwarded-port") or (b"443" if proto == b"https" else port)
        outer = b", ".join(value for name, value in head.headers if name.lower() == b"forwarded")
        prefix = _first(head.headers, b"x-forwarded-prefix").rstrip(b"/") + prefix
    if proto not in (b"http", b"https"):
        proto = b"http"
    element += proto
    block = _FORWARDED_BLOCK % (chain, host, proto, prefix, outer + b", " + element if outer else element)
    if port:
        block += b"X-Forwarded-Port: %s\r\n" % port
    return block


def public_proto(head: RequestHead, origin: Origin) -> bytes:
    """The scheme the client used, as far as it can be trusted."""
    if origin.trusted and _first(head.headers, b"x-forwarded-proto").strip().lower() == b"https":
        return b"https"
    return b"http"


def request_to_job(head: RequestHead, target: bytes, prefix: bytes, origin: Origin) -> bytes:
    """The head to send to the job.

    Args:
        head: the client's.
        target: the request target the job shall see, raw.
        prefix: the job's public prefix, empty when the job owns its host name.
        origin: how the client reached us.
    """
    lines = [b"%s %s HTTP/1.1\r\n" % (head.method, target)]
    named = head.connection
    for name, value in head.headers:
        key = name.lower()
        if key in HOP_BY_HOP or key in _FORWARDED or (named and key in named):
            continue
        if key == b"content-length" and head.body != BodyKind.LENGTH:
            continue
        lines.append(b"%s: %s\r\n" % (name, value))
    if not head.host:
        lines.append(b"Host: localhost\r\n")
    if head.body == BodyKind.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % head.upgrade)
    lines.append(_forwarded(head, origin, prefix))
    lines.append(b"\r\n")
    return b"".join(lines)


def response_to_client(
    head: ResponseHead,
    *,
    chunked: bool,
    keep_alive: bool,
    client_version: str,
    prefix: bytes,
    public_origin: bytes,
    job_origins: tuple[bytes, ...],
) -> bytes:
    """The head to send to the client.

    Args:
        head: the job's.
        chunked: whether we frame the body as chunks.
        keep_alive: whether the client's connection lives on.
        client_version: ``1.1`` or ``1.0``.
        prefix: put before absolute paths in Location and Set-Cookie; empty to leave them alone.
        public_origin: ``scheme://host`` under which the client knows us.
        job_origins: origins under which the job may name itself.
    """
    lines = [b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason)]
    named = head.connection
    framed_elsewhere = chunked or head.body == BodyKind.CHUNKED or head.status < 200 or head.status == 204
    for name, value in head.headers:
        key = name.lower()
        if key in HOP_BY_HOP and key != b"proxy-authenticate" and not (key == b"upgrade" and head.status == 426):
            continue
        if named and key in named:
            continue
        if key == b"content-length" and framed_elsewhere:
            continue
        if prefix:
            if key == b"location":
                value = _location(value, prefix, public_origin, job_origins)
            elif key == b"set-cookie":
                value = _set_cookie(value, prefix)
        lines.append(b"%s: %s\r\n" % (name, value))
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.status == 101:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % _first(head.headers, b"upgrade"))
    elif head.status >= 200:
        if not keep_alive:
            lines.append(b"Connection: close\r\n")
        elif client_version == "1.0":
            lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def _under(path: bytes, prefix: bytes) -> bytes:
    """`path` (absolute) under `prefix`, unless it is there already."""
    if path == prefix or path.startswith((prefix + b"/", prefix + b"?", prefix + b"#")):
        return path
    return prefix + path


def _location(value: bytes, prefix: bytes, public_origin: bytes, job_origins: tuple[bytes, ...]) -> bytes:
    """Location rule: an absolute path, or a URL of our own or the job's own origin; never a relative one."""
    if value.startswith(b"/"):
        return value if value.startswith(b"//") else _under(value, prefix)
    lowered = value.lower()
    for origin in (public_origin, *job_origins):
        if lowered.startswith(origin):
            path = value[len(origin) :]
            if path[:1] in (b"/", b"?", b"#", b""):
                kept = public_origin if origin == public_origin else b""
                return kept + _under(path if path[:1] == b"/" else b"/" + path, prefix)
    return value


def _set_cookie(value: bytes, prefix: bytes) -> bytes:
    """Set-Cookie rule: Path goes under the prefix; Domain goes, so that the cookie is ours alone (RFC 6265 section
    5.3)."""
    parts = value.split(b";")
    kept = [parts[0]]
    for part in parts[1:]:
        key, separator, content = part.partition(b"=")
        name = key.strip().lower()
        if name == b"domain":
            continue
        if name == b"path" and separator:
            path = content.strip()
            if path.startswith(b"/"):
                part = key + b"=" + _under(path, prefix)
        kept.append(part)
    return b";".join(kept)
