"""Where a job is, seen from outside and seen by itself: addresses in fields, put from one into the other.

Outside a job is below its prefix on the router's host name, or at the root of a host name of its own. The job sees
paths without the prefix (path mode ``strip``) or with it (``keep``), and itself under the public host name or, with
``expose.host`` ``local``, under the address it listens on. Only absolute paths and URLs of the public or the job's own
origin are changed: relative references are right as they are, other hosts are none of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from prouter.web.proxy.forwarded import Public

__all__ = ["Site", "local_host", "self_names"]

_REFRESH = re.compile(rb"""([\d.\s]*[;,\s]\s*(?:url\s*=\s*)?)("[^"]*|'[^']*|[^"'].*)(.*)""", re.IGNORECASE | re.DOTALL)
"""The parts of a Refresh field (HTML standard, "shared declarative refresh steps"): before its URL, that, the rest."""
_LINK_PART = re.compile(
    rb"""(;\s*anchor\s*=\s*")([^"\\]*)(?=")|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|(<)([^>]*)(?=>|\Z)""", re.IGNORECASE | re.DOTALL
)
"""A reference or a quoted string in a Link field (RFC 8288 section 3). An open end matches too: it is scanned once."""
_TAG = re.compile(rb"(<)([^>]*)")
"""A resource tag or lock token in an If field (RFC 4918 section 10.4)."""


class Site(NamedTuple):
    """One job's place, for one request.

    Attributes:
        prefix: path put before the job's absolute paths, without a slash at its end; empty for none.
        public: how the client knows the router, or the job on its own host name.
        names: ``host:port`` by which the job may name itself, in lower case.
        local: ``host:port`` under which the job is spoken to; empty for the public one.
        hidden: path that the client sees before the job's own, without that of a proxy before us; empty for none.
        own_host: whether the job has a host name of its own.
    """

    prefix: bytes
    public: Public
    names: tuple[bytes, ...] = ()
    local: bytes = b""
    hidden: bytes = b""
    own_host: bool = False

    # -- from the job to the client -----------------------------------------------------------------------------

    def to_client(self, name: bytes, value: bytes) -> bytes:
        """The value of an answer's field as the client has to see it."""
        if not self.prefix and not self.own_host and not self.local:
            return value
        return _RESPONSE_RULES[name.lower()](self, value)

    def url(self, value: bytes) -> bytes:
        """A URL: an absolute path, or one of the public or the job's own origin; never a relative one."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return self.outside(value)
        scheme, separator, rest = value.partition(b"//")
        given, scheme = scheme, scheme.lower()
        if not separator or scheme not in (b"http:", b"https:", b""):
            return value
        told, path = _split(rest)
        host = told.lower()
        ours = self.public.host.lower()
        if _portless(host, scheme[:-1] or self.public.proto) == _portless(ours, self.public.proto):
            # A job behind TLS that ends before us may not know of it.
            kept = told if host == ours else self.public.host
            return (self.public.proto + b":" if scheme == b"http:" else given) + b"//" + kept + self.outside(path)
        if scheme != b"https:" and (host in self.names or (self.local and host == self.local)):
            return self.outside(path)
        return value

    def outside(self, path: bytes) -> bytes:
        """An absolute path of the job under the prefix, unless it is there already.

        A job that is told its prefix by its environment does not know of the part that a proxy before us adds.
        """
        prefix, outer = self.prefix, self.public.prefix
        if not path.startswith(b"/"):
            path = b"/" + path
        if below(path, prefix):
            return path
        return outer + path if outer and below(path, prefix[len(outer) :]) else prefix + path

    def refresh(self, value: bytes) -> bytes:
        """Refresh: the URL after the seconds, in quotes or not."""
        match = _REFRESH.fullmatch(value)
        if match is None:
            return value
        url = match[2]
        quote = url[:1] if url[:1] in (b'"', b"'") else b""
        return match[1] + quote + self.url(url[len(quote) :]) + match[3]

    def link(self, value: bytes) -> bytes:
        """Link: every reference in angle brackets, and every anchor; quoted strings hold none."""
        return _LINK_PART.sub(self._link_part, value)

    def _link_part(self, match: re.Match[bytes]) -> bytes:
        before = match[1] or match[3]
        return match[0] if before is None else before + self.url(match[2] if match[1] else match[4])

    def cookie(self, value: bytes) -> bytes:
        """Set-Cookie: Path goes under the prefix; Domain goes: the cookie is the host's alone (RFC 6265 5.3)."""
        parts = value.split(b";")
        kept = [parts[0]]
        for part in parts[1:]:
            key, separator, content = part.partition(b"=")
            name = key.strip().lower()
            if name == b"domain":
                continue
            if name == b"path" and separator:
                path = content.strip()
                if path.startswith(b"/") and self.prefix:
                    part = key + b"=" + self.outside(path)
            kept.append(part)
        return b";".join(kept)

    def allowed_origin(self, value: bytes) -> bytes:
        """Access-Control-Allow-Origin: the client's own, where the job was told that it is the local one."""
        if self.local and value.lower() == b"http://" + self.local:
            return self.public.proto + b"://" + self.public.host
        return value

    # -- from the client to the job -----------------------------------------------------------------------------

    def to_job(self, name: bytes, value: bytes) -> bytes:
        """The value of a request's field as the job has to see it."""
        return _REQUEST_RULES[name.lower()](self, value)

    def host(self, value: bytes) -> bytes:
        """Host: the job's local address, if it wants to be spoken to so."""
        return self.local or value

    def inside(self, value: bytes) -> bytes:
        """An absolute path, or URL of the public origin, below the prefix: as the job sees it. Others stay."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return self._strip(value)
        scheme, separator, rest = value.partition(b"://")
        host, path = _split(rest)
        if not separator or not self._is_public(scheme, host):
            return value
        return (b"http://" + self.local if self.local else scheme + separator + host) + self._strip(path)

    def origin(self, value: bytes) -> bytes:
        """Origin: the job's local one instead of the public one. Other sites stay what they are."""
        if not self.local:
            return value
        scheme, separator, host = value.partition(b"://")
        return b"http://" + self.local if separator and self._is_public(scheme, host) else value

    def referer(self, value: bytes) -> bytes:
        """Referer, likewise."""
        return self.inside(value) if self.local else value

    def tags(self, value: bytes) -> bytes:
        """If of WebDAV: the URLs among its resource tags."""
        return _TAG.sub(lambda match: match[1] + self.inside(match[2]), value) if b"<" in value else value

    def _strip(self, path: bytes) -> bytes:
        """Without the part of the path that only the client sees; a path beside it belongs to another job."""
        outer = self.public.prefix
        rest = path[len(outer) :] if outer and below(path, outer) else path
        if self.hidden and below(rest, self.hidden):
            rest = rest[len(self.hidden) :]
        elif self.hidden and not self.own_host:
            rest = path
        return rest if rest[:1] == b"/" else b"/" + rest

    def _is_public(self, scheme: bytes, host: bytes) -> bool:
        """Whether a URL's host is ours; its scheme may be one that ends before us without our being told."""
        scheme, host, ours = scheme.lower(), host.lower(), self.public.host.lower()
        return scheme in (b"http", b"https") and (
            host == ours or _portless(host, scheme) == _portless(ours, self.public.proto)
        )


_Rule = Callable[[Site, bytes], bytes]
_RESPONSE_RULES: dict[bytes, _Rule] = {
    b"location": Site.url,
    b"content-location": Site.url,
    b"sourcemap": Site.url,
    b"x-sourcemap": Site.url,
    b"refresh": Site.refresh,
    b"link": Site.link,
    b"set-cookie": Site.cookie,
    b"access-control-allow-origin": Site.allowed_origin,
}
_REQUEST_RULES: dict[bytes, _Rule] = {
    b"host": Site.host,
    b"origin": Site.origin,
    b"referer": Site.referer,
    b"destination": Site.inside,
    b"if": Site.tags,
}


def below(path: bytes, prefix: bytes) -> bool:
    """Whether a path, with its query or fragment, is the prefix or below it."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?", b"#")


@lru_cache(1024)
def self_names(port: int) -> tuple[bytes, ...]:
    """``host:port`` by which a server on this port of loopback may name itself."""
    return (b"127.0.0.1:%d" % port, b"localhost:%d" % port, b"[::1]:%d" % port)


def local_host(endpoint: dict[str, Any]) -> bytes:
    """The Host of a request by a client on the job's own machine."""
    port = endpoint.get("port")
    if port is None:
        return b"localhost"
    host = str(endpoint.get("host") or "127.0.0.1")
    return f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """The authority, and the path with its query, of what follows ``//`` in a URL."""
    end = next((index for index, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    return rest[:end], rest[end:]


def _portless(host: bytes, scheme: bytes) -> bytes:
    """The host without a port that its scheme implies."""
    return host.removesuffix(b":443" if scheme == b"https" else b":80")
