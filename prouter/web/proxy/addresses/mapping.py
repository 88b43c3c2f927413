"""Addresses of a job in header fields, translated between the client's view and the job's.

The client finds a job below its prefix on the router's host name, or at the root of the job's own host name. The job
sees paths without the prefix (path mode ``strip``) or with it (``keep``), and itself under the public host name or,
with ``expose.host`` ``local``, under the address it listens on. Only absolute paths and URLs of the public or the job's
own origin change: relative references are right as they are, and other hosts are not the router's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from prouter.addresses import join_address
from prouter.web.proxy.addresses.forwarded import Public

__all__ = ["Site", "local_host", "self_names"]

_REFRESH = re.compile(rb"""([\d.\s]*[;,\s]\s*(?:url\s*=\s*)?)("[^"]*|'[^']*|[^"'].*)(.*)""", re.IGNORECASE | re.DOTALL)
"""Refresh (HTML standard, "shared declarative refresh steps"): what precedes the URL, the URL, the rest."""
_LINK_PART = re.compile(
    rb"""(;\s*anchor\s*=\s*")([^"\\]*)(?=")|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|(<)([^>]*)(?=>|\Z)""", re.IGNORECASE | re.DOTALL
)
"""A reference or a quoted string in Link (RFC 8288 section 3). An open end matches, so that it is scanned only once."""
_TAG = re.compile(rb"(<)([^>]*)")
"""A resource tag or lock token in If (RFC 4918 section 10.4)."""


class Site(NamedTuple):
    """One job's addresses, for one request.

    Attributes:
        prefix: path put before the job's absolute paths, without a slash at its end; empty for none.
        public: the address by which the client knows the router, or the job on its own host name.
        names: ``host:port`` by which the job may name itself, in lower case.
        local: ``host:port`` in the Host that the job gets; empty for the public one.
        hidden: path that only the client sees, without the part of a proxy before the router; empty for none.
        own_host: whether the client used the job's own host name.
    """

    prefix: bytes
    public: Public
    names: tuple[bytes, ...] = ()
    local: bytes = b""
    hidden: bytes = b""
    own_host: bool = False

    # -- from the job to the client -----------------------------------------------------------------------------

    def to_client(self, name: bytes, value: bytes) -> bytes:
        """Return a response field's value as the client has to see it."""
        if not self.prefix and not self.own_host and not self.local:
            return value
        return _RESPONSE_RULES[name.lower()](self, value)

    def url(self, value: bytes) -> bytes:
        """Translate an absolute path, or a URL of the public or the job's own origin; leave others."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return self.outside(value)
        scheme, separator, rest = value.partition(b"//")
        given, scheme = scheme, scheme.lower()
        if not separator or scheme not in (b"http:", b"https:", b""):
            return value
        authority, path = _split(rest)
        host = authority.lower()
        ours = self.public.host.lower()
        if _portless(host, scheme[:-1] or self.public.proto) == _portless(ours, self.public.proto):
            # If a proxy before the router ends TLS, the job may not know, and write http.
            kept = authority if host == ours else self.public.host
            return (self.public.proto + b":" if scheme == b"http:" else given) + b"//" + kept + self.outside(path)
        if scheme != b"https:" and (host in self.names or (self.local and host == self.local)):
            return self.outside(path)
        return value

    def outside(self, path: bytes) -> bytes:
        """Put an absolute path of the job under the prefix, unless it is there already.

        A job that has its prefix from its environment does not know the part that a proxy before the router adds.
        """
        prefix, outer = self.prefix, self.public.prefix
        if not path.startswith(b"/"):
            path = b"/" + path
        if below(path, prefix):
            return path
        return outer + path if outer and below(path, prefix[len(outer) :]) else prefix + path

    def refresh(self, value: bytes) -> bytes:
        """Translate Refresh: the URL after the seconds, in quotes or not."""
        match = _REFRESH.fullmatch(value)
        if match is None:
            return value
        url = match[2]
        quote = url[:1] if url[:1] in (b'"', b"'") else b""
        return match[1] + quote + self.url(url[len(quote) :]) + match[3]

    def link(self, value: bytes) -> bytes:
        """Translate Link: references in angle brackets and anchors, not what is in other quoted strings."""
        return _LINK_PART.sub(self._link_part, value)

    def _link_part(self, match: re.Match[bytes]) -> bytes:
        before = match[1] or match[3]
        return match[0] if before is None else before + self.url(match[2] if match[1] else match[4])

    def cookie(self, value: bytes) -> bytes:
        """Translate Set-Cookie: put Path under the prefix, drop Domain.

        Without Domain the cookie is for this host only (RFC 6265 section 5.3), not for the jobs on its subdomains.
        """
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
        """Translate Access-Control-Allow-Origin: the public origin in place of the job's local one."""
        if self.local and value.lower() == b"http://" + self.local:
            return self.public.proto + b"://" + self.public.host
        return value

    # -- from the client to the job -----------------------------------------------------------------------------

    def to_job(self, name: bytes, value: bytes) -> bytes:
        """Return a request field's value as the job has to see it."""
        return _REQUEST_RULES[name.lower()](self, value)

    def host(self, value: bytes) -> bytes:
        """Translate Host: the job's local address, if the job expects requests for that."""
        return self.local or value

    def inside(self, value: bytes) -> bytes:
        """Translate an absolute path or a URL of the public origin, if it is below the prefix; leave others."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return self._strip(value)
        scheme, separator, rest = value.partition(b"://")
        host, path = _split(rest)
        if not separator or not self._is_public(scheme, host):
            return value
        return (b"http://" + self.local if self.local else scheme + separator + host) + self._strip(path)

    def origin(self, value: bytes) -> bytes:
        """Translate Origin: the job's local origin in place of the public one; leave those of other sites."""
        if not self.local:
            return value
        scheme, separator, host = value.partition(b"://")
        return b"http://" + self.local if separator and self._is_public(scheme, host) else value

    def referer(self, value: bytes) -> bytes:
        """Translate Referer, for a job that expects its local address."""
        return self.inside(value) if self.local else value

    def tags(self, value: bytes) -> bytes:
        """Translate If of WebDAV: the URLs in its resource tags."""
        return _TAG.sub(lambda match: match[1] + self.inside(match[2]), value) if b"<" in value else value

    def _strip(self, path: bytes) -> bytes:
        """Remove the part of a path that only the client sees. A path beside it is another job's, and stays."""
        outer = self.public.prefix
        rest = path[len(outer) :] if outer and below(path, outer) else path
        if self.hidden and below(rest, self.hidden):
            rest = rest[len(self.hidden) :]
        elif self.hidden and not self.own_host:
            rest = path
        return rest if rest[:1] == b"/" else b"/" + rest

    def _is_public(self, scheme: bytes, host: bytes) -> bool:
        """Whether a URL is of the public origin. It may be https although no proxy said that it ends TLS."""
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
    """Return ``host:port`` by which a server on this port of loopback may name itself."""
    return (b"127.0.0.1:%d" % port, b"localhost:%d" % port, b"[::1]:%d" % port)


def local_host(endpoint: dict[str, Any]) -> bytes:
    """Return the Host that a client on the job's own machine would send."""
    port = endpoint.get("port")
    if port is None:
        return b"localhost"
    return join_address(str(endpoint.get("host") or "127.0.0.1"), port).encode()


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """Split what follows ``//`` in a URL into the authority and the path with its query."""
    end = next((index for index, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    return rest[:end], rest[end:]


def _portless(host: bytes, scheme: bytes) -> bytes:
    """Return the host without a port that is its scheme's default."""
    return host.removesuffix(b":443" if scheme == b"https" else b":80")
