"""What changes in a head on its way: forwarded headers, the public prefix, framing. Everything else passes untouched.

A job's public prefix is ``/jobs/<connection>/<job>/http``. With path mode ``strip`` the job sees paths without it, so
paths in its Location and Set-Cookie are put under it; with ``keep`` the job knows its prefix and nothing is rewritten.
"""

from __future__ import annotations

from prouter.api.proxy.forwarded import FORWARDED, Origin, Public, forwarded
from prouter.api.proxy.heads import HOP_BY_HOP, BodyKind, RequestHead, ResponseHead

__all__ = ["request_to_job", "response_to_client"]


def _first(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return b""


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
        if key in HOP_BY_HOP or key in FORWARDED or (named and key in named):
            continue
        if b"_" in key and key.replace(b"_", b"-") in FORWARDED:
            continue  # CGI and WSGI would take it for the real one.
        if key == b"content-length" and head.body != BodyKind.LENGTH:
            continue
        if key == b"expect" and not head.expect and value.lower() == b"100-continue":
            continue  # an old client would not understand the answer
        lines.append(b"%s: %s\r\n" % (name, value))
    if head.body == BodyKind.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % head.upgrade)
    lines.append(forwarded(head, origin, prefix))
    lines.append(b"\r\n")
    return b"".join(lines)


def response_to_client(
    head: ResponseHead,
    *,
    chunked: bool,
    keep_alive: bool,
    client_version: str,
    prefix: bytes,
    public: Public,
    job_origins: tuple[bytes, ...],
    own_host: bool = False,
) -> bytes:
    """The head to send to the client.

    Args:
        head: the job's.
        chunked: whether we frame the body as chunks.
        keep_alive: whether the client's connection lives on.
        client_version: ``1.1`` or ``1.0``.
        prefix: put before absolute paths in Location and Set-Cookie; empty to leave them alone.
        public: how the client knows us.
        job_origins: ``host:port`` under which the job may name itself, in lower case.
        own_host: whether the job has a host name of its own, which its cookies must not leave.
    """
    lines = [b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason)]
    named = head.connection
    asked = b""
    framed_elsewhere = chunked or head.body == BodyKind.CHUNKED or head.status < 200 or head.status == 204
    for name, value in head.headers:
        key = name.lower()
        if key == b"upgrade" and head.status == 426:
            asked = b"Upgrade, "  # RFC 9110 section 15.5.22: it says what to upgrade to
        elif key in HOP_BY_HOP and key != b"proxy-authenticate":
            continue
        elif key == b"x-prouter-error" or (named and key in named):
            continue  # the first marks errors that are not the job's
        if key == b"content-length" and framed_elsewhere:
            continue
        if key == b"location" and (prefix or own_host):
            value = _location(value, prefix, public, job_origins)
        elif key == b"set-cookie" and (prefix or own_host):
            value = _set_cookie(value, prefix, public.prefix)
        lines.append(b"%s: %s\r\n" % (name, value))
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.status == 101:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % _first(head.headers, b"upgrade"))
    elif head.status >= 200:
        persistence = b"close" if not keep_alive else b"keep-alive" if client_version == "1.0" else b""
        if asked or persistence:
            lines.append(b"Connection: %s\r\n" % (asked + persistence).removesuffix(b", "))
    lines.append(b"\r\n")
    return b"".join(lines)


def _under(path: bytes, prefix: bytes, outer: bytes) -> bytes:
    """`path` (absolute) under `prefix`, unless it is there already.

    A job that is told its prefix by its environment does not know of `outer`, the part that a proxy before us adds.
    """
    if _is_under(path, prefix):
        return path
    return outer + path if outer and _is_under(path, prefix[len(outer) :]) else prefix + path


def _is_under(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith((prefix + b"/", prefix + b"?", prefix + b"#"))


def _location(value: bytes, prefix: bytes, public: Public, job_origins: tuple[bytes, ...]) -> bytes:
    """Location rule: an absolute path, or a URL of our own or the job's own origin; never a relative one."""
    if value.startswith(b"/") and not value.startswith(b"//"):
        return _under(value, prefix, public.prefix)
    scheme, separator, rest = value.partition(b"//")
    given, scheme = scheme, scheme.lower()
    if not separator or scheme not in (b"http:", b"https:", b""):
        return value
    end = next((index for index, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    host, path = rest[:end].lower(), rest[end:]
    path = _under(path if path[:1] == b"/" else b"/" + path, prefix, public.prefix)
    ours = public.host.lower()
    if _portless(host, scheme[:-1] or public.proto) == _portless(ours, public.proto):
        # A job behind TLS that ends before us may not know of it.
        told = rest[:end] if host == ours else public.host
        return (public.proto + b":" if scheme == b"http:" else given) + b"//" + told + path
    return path if scheme != b"https:" and host in job_origins else value


def _portless(host: bytes, scheme: bytes) -> bytes:
    """The host without a port that its scheme implies."""
    return host.removesuffix(b":443" if scheme == b"https" else b":80")


def _set_cookie(value: bytes, prefix: bytes, outer: bytes) -> bytes:
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
            if path.startswith(b"/") and prefix:
                part = key + b"=" + _under(path, prefix, outer)
        kept.append(part)
    return b";".join(kept)
