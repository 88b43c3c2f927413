"""Forwarded header fields: those that arrive with a request, and those that its job gets.

The proxy replaces what a client claims about itself with what its connection shows. It believes a trusted proxy's
``X-Forwarded-*`` or ``Forwarded`` (RFC 7239) and appends its own entry, so that a job sees the whole chain.

The proxy writes a host into ``Forwarded`` only where a token can hold it, which excludes ports (RFC 7239 section 4).
Servers that read the field without a parser for quoted strings (code-server) take the quotes for part of the name, and
prefer it to ``X-Forwarded-Host``, which always has the host.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.errors import PRouterError
from prouter.web.proxy.messages.heads import RequestHead

__all__ = ["FORWARDED", "Forwarded", "Origin", "Public"]

FORWARDED = frozenset(
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
"""Fields that the proxy always replaces; fields.py lists those it drops for untrusted clients."""

_BLOCK = (
    b"X-Forwarded-For: %s\r\nX-Forwarded-Host: %s\r\nX-Forwarded-Proto: %s\r\nX-Forwarded-Prefix: %s\r\n"
    b"Forwarded: %s\r\n"
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SCHEMES = (b"http", b"https")
_PREFIX = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_OUTSIDE, _INSIDE = re.compile(rb'[,"]'), re.compile(rb'"|\\.', re.DOTALL)
"""What matters outside and inside of quotes to tell elements of a list apart."""
_WELL_FORMED = re.compile(
    rb'\s*[A-Za-z0-9-]+=(?:"(?:[^"\\]|\\.)*"|[^;,\s"]+)(?:\s*;\s*[A-Za-z0-9-]+=(?:"(?:[^"\\]|\\.)*"|[^;,\s"]+))*;?\s*'
)
_PAIR = re.compile(rb'[;\s]*([A-Za-z0-9-]+)=("(?:[^"\\]|\\.)*"|[^;,\s"]+)')


class Origin(NamedTuple):
    """How a client reached the worker.

    Attributes:
        address: the peer's address as the socket has it, ``unix`` for a unix socket.
        port: port of the listener that the peer connected to, 0 for a unix socket.
        trusted: whether the peer is one of ``control.trusted_proxies``, whose forwarded fields are believed.
    """

    address: str
    port: int
    trusted: bool


class Public(NamedTuple):
    """The router's address as the client of a request sees it.

    Attributes:
        proto: ``http`` or ``https``.
        host: with the port, unless that is the scheme's default.
        prefix: path under which a proxy before us serves the router, without a slash at its end; mostly empty.
    """

    proto: bytes
    host: bytes
    prefix: bytes = b""


class Forwarded:
    """The client and the proxies of a request, read from its head at the first use.

    Args:
        head: the request's head.
        origin: how the client reached us; only a trusted one's fields are believed.
        principal: whom its credentials let in; None if they let in nobody.

    Attributes:
        visitor: whom the credentials name that a browser adds by itself, whether they count for this request or not.
        refused: why a trusted proxy's user may do nothing; None for anybody else.
        identity: lines of the head that tell a job who sends the request; empty for nobody in particular.
    """

    __slots__ = ("_fields", "_public", "head", "identity", "origin", "principal", "refused", "visitor")

    def __init__(self, head: RequestHead, origin: Origin, principal: Principal | None = OPEN_ROUTER) -> None:
        self.head = head
        self.origin = origin
        self.principal = principal
        self.visitor: Principal | None = None
        self.refused: PRouterError | None = None
        self.identity = b""
        self._public: Public | None = None
        self._fields: list[tuple[bytes, bytes]] | None = None

    @property
    def public(self) -> Public:
        """The scheme, host and path prefix that the client used, as far as they are known."""
        public = self._public
        if public is None:
            trusted = self.origin.trusted
            public = self._public = self._as_told_by_proxies() if trusted else Public(b"http", self.head.host)
        return public

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host name the request was sent to: Host or, from a trusted proxy that names hosts, all it names.

        All of them, because a proxy may append to what the client claims.
        """
        named: list[bytes] = []
        if self.origin.trusted:
            named = [entry.strip() for entry in self._joined(b"x-forwarded-host").split(b",")]
            named += [_pairs(element).get(b"host", b"") for element in _elements(self._joined(b"forwarded"))]
        return tuple(host.decode("latin-1") for host in named if host) or (self.head.host.decode("latin-1"),)

    @property
    def clients(self) -> str:
        """What a trusted proxy says of the client's address, with those of the proxies before it; else empty."""
        return self._joined(b"x-forwarded-for").decode("latin-1") if self.origin.trusted else ""

    @property
    def chain(self) -> list[str]:
        """The addresses that a trusted proxy names, the client's first; empty if nobody names any."""
        if not self.origin.trusted:
            return []
        nodes = [entry.strip() for entry in self._joined(b"x-forwarded-for").split(b",") if entry.strip()]
        if not nodes:
            # A client's unpaired quote may have joined its element to that of the proxy: such a one says nothing.
            hops = [hop if _WELL_FORMED.fullmatch(hop) else b"" for hop in _elements(self._joined(b"forwarded"))]
            nodes = [_pairs(hop).get(b"for", b"unknown") for hop in hops]
        return [_address(node).decode("latin-1") for node in nodes]

    def lines(self, prefix: bytes) -> bytes:
        """The forwarded header lines for the job.

        Args:
            prefix: the job's public prefix, empty when the job has a host name of its own.
        """
        head, origin = self.head, self.origin
        if not origin.trusted:
            return _of_connection(origin.address, origin.port, head.host, prefix)
        peer, node = _peer(origin.address)
        public = self.public
        clients = [entry.strip() for entry in self._joined(b"x-forwarded-for").split(b",") if entry.strip()]
        hops = self._joined(b"forwarded")
        if not hops:
            hops = b", ".join(_element(_node(entry), public.host, public.proto) for entry in clients)
        elif not clients:
            clients = [_address(_pairs(hop).get(b"for", b"unknown")) for hop in _elements(hops)]
        if b'host="' in hops.lower():
            hops = b", ".join(map(_with_plain_host, _elements(hops)))
        # Servers take the first host that is named: ours must not be it when the client used another one.
        named = public.host == head.host or b"host=" in hops.lower()
        element = _element(node, head.host if named else b"", b"http")
        if origin.address != "unix":
            clients.append(peer)
        block = _BLOCK % (
            b", ".join(clients) or peer,
            public.host,
            public.proto,
            public.prefix + prefix,
            hops + b", " + element if hops else element,
        )
        return block + b"X-Forwarded-Port: %s\r\n" % (self._first(b"x-forwarded-port") or _port(public))

    def _as_told_by_proxies(self) -> Public:
        """The client's view according to trusted proxies."""
        pairs = _pairs(self._joined(b"forwarded"))
        proto = (self._first(b"x-forwarded-proto") or pairs.get(b"proto", b"")).lower()
        host = self._first(b"x-forwarded-host") or pairs.get(b"host", b"") or self.head.host
        prefix = self._first(b"x-forwarded-prefix").rstrip(b"/")
        return Public(
            proto if proto in _SCHEMES else b"http", host, prefix if _PREFIX.fullmatch(prefix) is not None else b""
        )

    def _entries(self) -> list[tuple[bytes, bytes]]:
        """The head's forwarded fields, names in lower case."""
        fields = self._fields
        if fields is None:
            fields = [(key, value) for name, value in self.head.headers if (key := name.lower()) in FORWARDED]
            self._fields = fields
        return fields

    def _joined(self, wanted: bytes) -> bytes:
        """All values of one field as one list."""
        return b", ".join(value for name, value in self._entries() if name == wanted)

    def _first(self, wanted: bytes) -> bytes:
        """The first entry of a list-valued field, which the proxy nearest to the client added."""
        for name, value in self._entries():
            if name == wanted:
                return value.partition(b",")[0].strip()
        return b""


@lru_cache(512)
def _of_connection(address: str, port: int, host: bytes, prefix: bytes) -> bytes:
    """The lines for a client that is no trusted proxy; cached, as most requests of a connection share them."""
    peer, node = _peer(address)
    block = _BLOCK % (peer, host, b"http", prefix, _element(node, host, b"http"))
    return block + b"X-Forwarded-Port: %d\r\n" % port if port else block


def _peer(address: str) -> tuple[bytes, bytes]:
    """The client's address as X-Forwarded-For writes it, and as ``Forwarded`` does."""
    peer = b"unknown" if address == "unix" else address.encode("ascii")
    return peer, b'"[%s]"' % peer if b":" in peer else peer


def _pairs(element: bytes) -> dict[bytes, bytes]:
    """The parameters of the first element of a ``Forwarded`` field (RFC 7239 section 4), keys in lower case."""
    found: dict[bytes, bytes] = {}
    position = 0
    while match := _PAIR.match(element, position):
        value = match[2]
        if value.startswith(b'"'):
            value = re.sub(rb"\\(.)", rb"\1", value[1:-1])
        found.setdefault(match[1].lower(), value)
        position = match.end()
    return found


def _elements(field: bytes) -> list[bytes]:
    """The elements of a ``Forwarded`` field, split at commas outside quotes."""
    found: list[bytes] = []
    start = position = 0
    quoted = False
    while match := (_INSIDE if quoted else _OUTSIDE).search(field, position):
        position = match.end()
        if match[0] == b'"':
            quoted = not quoted
        elif match[0] == b",":
            found.append(field[start : match.start()])
            start = position
    rest = field[start:]
    # A quote that nothing closes quotes nothing: what a proxy has appended to it is an element of its own.
    found += rest.split(b",") if quoted else [rest]
    return [part for part in found if part.strip()]


def _element(node: bytes, host: bytes, proto: bytes) -> bytes:
    """One element of ``Forwarded``; `host` is left out where no token can hold it."""
    return b"for=%s;%sproto=%s" % (node, b"host=%s;" % host if _TOKEN.fullmatch(host) else b"", proto)


def _with_plain_host(element: bytes) -> bytes:
    """An element of ``Forwarded`` without its host where no token can hold it."""
    pairs = _pairs(element)
    if _TOKEN.fullmatch(pairs.get(b"host", b"")) is None:
        pairs.pop(b"host", None)
    return b";".join(name + b"=" + _value(value) for name, value in pairs.items())


def _value(text: bytes) -> bytes:
    """A parameter's value: a token if it can be one, else a quoted string (RFC 7239 section 4)."""
    return text if _TOKEN.fullmatch(text) else b'"%s"' % re.sub(rb'(["\\])', rb"\\\1", text)


def _address(node: bytes) -> bytes:
    """The address in a node of ``Forwarded`` (RFC 7239 section 6) or an entry of X-Forwarded-For, without its port."""
    if node.startswith(b"["):
        return node[1:].partition(b"]")[0]
    return node.partition(b":")[0] if node.count(b":") == 1 else node


def _node(address: bytes) -> bytes:
    """An address as RFC 7239 section 6 writes it; ``unknown`` if it is no IP address."""
    address = _address(address)
    try:
        found = ip_address(address.decode("ascii").partition("%")[0])
    except ValueError:
        return b"unknown"
    return b'"[%s]"' % address if found.version == 6 else address


def _port(public: Public) -> bytes:
    """The port in a public host, or its scheme's own."""
    port = public.host.rpartition(b":")[2] if b":" in public.host else b""
    if port.isdigit():
        return port
    return b"443" if public.proto == b"https" else b"80"
