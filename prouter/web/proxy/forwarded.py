"""Who asked for what, through which proxies: forwarded headers that arrive, and those that jobs get.

What a client claims of itself is replaced by what its connection shows. What a trusted proxy says (``X-Forwarded-*``,
or RFC 7239's ``Forwarded``) is believed and extended by the proxy itself, so that a job sees the whole chain.

``Forwarded`` names a host only as a token, which a host with a port cannot be (RFC 7239 section 4). Servers that read
it without a parser for quoted strings (code-server) would take the quotes for a part of the name, and they prefer it to
``X-Forwarded-Host``, which always tells the host.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from prouter.web.proxy.heads import RequestHead

__all__ = ["FORWARDED", "Origin", "Public", "as_seen_by_the_client", "forwarded", "hosts_used"]

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
"""Fields that are never passed on as they came; `prouter.web.proxy.fields` has those of untrusted clients."""

_BLOCK = (
    b"X-Forwarded-For: %s\r\nX-Forwarded-Host: %s\r\nX-Forwarded-Proto: %s\r\nX-Forwarded-Prefix: %s\r\n"
    b"Forwarded: %s\r\n"
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SCHEMES = (b"http", b"https")
_PREFIX = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_PAIR = re.compile(rb'[;\s]*([A-Za-z0-9-]+)=("(?:[^"\\]|\\.)*"|[^;,\s"]+)')


class Origin(NamedTuple):
    """How a client's connection reached us.

    Attributes:
        address: the peer's address as the socket tells it, ``unix`` for a unix socket.
        port: port of our listener the peer connected to, 0 for a unix socket.
        trusted: whether the peer is a proxy whose forwarded headers are believed.
    """

    address: str
    port: int
    trusted: bool


class Public(NamedTuple):
    """Our side of a request as its client sees it.

    Attributes:
        proto: ``http`` or ``https``.
        host: with the port, unless that is the scheme's own.
        prefix: path under which a proxy before us serves us, without a slash at its end; mostly empty.
    """

    proto: bytes
    host: bytes
    prefix: bytes = b""


def as_seen_by_the_client(head: RequestHead, origin: Origin) -> Public:
    """The scheme, host and path prefix the client used, as far as it can be told."""
    if not origin.trusted:
        return Public(b"http", head.host)
    fields = _fields(head)
    told = _pairs(_join(fields, b"forwarded"))
    proto = (_first(fields, b"x-forwarded-proto") or told.get(b"proto", b"")).lower()
    host = _first(fields, b"x-forwarded-host") or told.get(b"host", b"") or head.host
    prefix = _first(fields, b"x-forwarded-prefix").rstrip(b"/")
    return Public(
        proto if proto in _SCHEMES else b"http", host, prefix if _PREFIX.fullmatch(prefix) is not None else b""
    )


def hosts_used(head: RequestHead, origin: Origin) -> tuple[str, ...]:
    """Every host name the request was sent to: Host, or, from a trusted proxy that tells, all those it tells of.

    All of them, since a proxy may append to what the client claims.
    """
    named: list[bytes] = []
    if origin.trusted:
        fields = _fields(head)
        named = [entry.strip() for entry in _join(fields, b"x-forwarded-host").split(b",")]
        named += [_pairs(element).get(b"host", b"") for element in _elements(_join(fields, b"forwarded"))]
    return tuple(host.decode("latin-1") for host in named if host) or (head.host.decode("latin-1"),)


def forwarded(head: RequestHead, origin: Origin, prefix: bytes) -> bytes:
    """The block of forwarded header lines for the job.

    Args:
        prefix: the job's public prefix, empty when the job owns its host name.
    """
    if not origin.trusted:
        return _of_connection(origin.address, origin.port, head.host, prefix)
    peer, node = _peer(origin.address)
    public = as_seen_by_the_client(head, origin)
    fields = _fields(head)
    clients = [entry.strip() for entry in _join(fields, b"x-forwarded-for").split(b",") if entry.strip()]
    hops = _join(fields, b"forwarded")
    if not hops:
        hops = b", ".join(_element(_node(entry), public.host, public.proto) for entry in clients)
    elif not clients:
        clients = [_address(_pairs(hop).get(b"for", b"unknown")) for hop in _elements(hops)]
    if b'host="' in hops.lower():
        hops = b", ".join(map(_with_plain_host, _elements(hops)))
    # The first host that is named counts: ours must not be it when the client used another one.
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
    return block + b"X-Forwarded-Port: %s\r\n" % (_first(fields, b"x-forwarded-port") or _port(public))


@lru_cache(512)
def _of_connection(address: str, port: int, host: bytes, prefix: bytes) -> bytes:
    """What a connection shows of its client: the same for most of its requests."""
    peer, node = _peer(address)
    block = _BLOCK % (peer, host, b"http", prefix, _element(node, host, b"http"))
    return block + b"X-Forwarded-Port: %d\r\n" % port if port else block


def _peer(address: str) -> tuple[bytes, bytes]:
    """The client's address as X-Forwarded-For has it, and as ``Forwarded`` does."""
    peer = b"unknown" if address == "unix" else address.encode("ascii")
    return peer, b'"[%s]"' % peer if b":" in peer else peer


def _fields(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """The head's forwarded fields, names in lower case."""
    return [(key, value) for name, value in head.headers if (key := name.lower()) in FORWARDED]


def _join(fields: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    return b", ".join(value for name, value in fields if name == wanted)


def _first(fields: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    """The first entry of a list-valued field: what the proxy nearest to the client said."""
    for name, value in fields:
        if name == wanted:
            return value.partition(b",")[0].strip()
    return b""


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
    """The elements of a ``Forwarded`` field; commas within quotes do not count."""
    return [part for part in re.findall(rb'(?:[^,"]|"(?:[^"\\]|\\.)*")+', field) if part.strip()]


def _element(node: bytes, host: bytes, proto: bytes) -> bytes:
    """One element of ``Forwarded``: `node` asked for `host`, which is named if a token can."""
    return b"for=%s;%sproto=%s" % (node, b"host=%s;" % host if _TOKEN.fullmatch(host) else b"", proto)


def _with_plain_host(element: bytes) -> bytes:
    """An element of ``Forwarded`` with its host as a token, or without."""
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
    """An address as RFC 7239 section 6 writes it; ``unknown`` for what is none."""
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
