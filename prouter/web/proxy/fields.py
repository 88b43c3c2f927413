"""Which fields pass on their way to a job and back, decided by name alone.

A decision is remembered per name, so that a usual head costs a look-up per field.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from prouter.web.proxy.forwarded import FORWARDED
from prouter.web.proxy.heads import HOP_BY_HOP

__all__ = ["HOPS", "RequestField", "ResponseField", "request_field", "response_field"]

HOPS = b"x-prouter-via"
"""Names, by pseudonym, the routers a request came through (docs/decisions/proxy-worker.md tells why it is not Via)."""

_CLAIMED_PREFIXES = (b"x-forwarded-", b"x-original-")
_CLAIMED = frozenset(
    {
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-visitor",
        b"client-ip",
        b"cloudfront-forwarded-proto",
        b"fastly-client-ip",
        b"front-end-https",
        b"true-client-ip",
        b"wl-proxy-client-ip",
        b"wl-proxy-ssl",
        b"x-arr-ssl",
        b"x-azure-clientip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-envoy-original-path",
        b"x-forwarded",
        b"x-host",
        b"x-originating-ip",
        b"x-proxyuser-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-rewrite-url",
        b"x-scheme",
        b"x-script-name",
        b"x-url-scheme",
    }
)
"""What servers take for a proxy's word of who asked, how, or for which path (docs/http-api.md lists them)."""
_ORIGIN_WIDE = frozenset(
    {b"alt-svc", b"clear-site-data", b"nel", b"report-to", b"service-worker-allowed", b"strict-transport-security"}
)
"""What counts for all of an origin: a job that shares its origin with others must not set it."""
_LONGEST = 64
"""Bytes of a name that is remembered."""
_REMEMBERED = 2048


class RequestField:
    """What becomes of a request's field; PASS is false."""

    PASS = 0
    DROP = 1
    CLAIM = 2
    """Passes only if a trusted proxy sent it."""
    LENGTH = 3
    EXPECT = 4
    HOPS = 5
    MAP = 6
    """Its value may name the job's public address: paths in it lose the prefix where the target does."""
    LOCAL = 7
    """Its value names the public host, unless the job wants to be spoken to under its local address."""


class ResponseField:
    """What becomes of an answer's field; PASS is false."""

    PASS = 0
    DROP = 1
    SHARED = 2
    """Passes only if the job has an origin of its own."""
    LENGTH = 3
    UPGRADE = 4
    MAP = 5
    """Its value may name the job's address as the job sees it."""


_ASKED = {
    b"content-length": RequestField.LENGTH,
    b"expect": RequestField.EXPECT,
    b"host": RequestField.LOCAL,
    b"origin": RequestField.LOCAL,
    b"referer": RequestField.LOCAL,
    b"destination": RequestField.MAP,
    b"if": RequestField.MAP,
    HOPS: RequestField.HOPS,
    b"proxy": RequestField.DROP,  # CGI would make HTTP_PROXY of it
}
_ANSWERED = {
    b"content-length": ResponseField.LENGTH,
    b"upgrade": ResponseField.UPGRADE,
    b"proxy-status": ResponseField.PASS,
    b"x-prouter-error": ResponseField.DROP,  # it marks errors that are not the job's
    b"location": ResponseField.MAP,
    b"content-location": ResponseField.MAP,
    b"refresh": ResponseField.MAP,
    b"link": ResponseField.MAP,
    b"sourcemap": ResponseField.MAP,
    b"x-sourcemap": ResponseField.MAP,
    b"set-cookie": ResponseField.MAP,
    b"access-control-allow-origin": ResponseField.MAP,
}


def _request_field(name: bytes) -> int:
    key = name.lower()
    if key in HOP_BY_HOP or key.startswith(b"proxy-"):
        return RequestField.DROP
    plain = key.replace(b"_", b"-")  # CGI and WSGI take both for the same
    if plain in FORWARDED or (plain == HOPS and plain != key):
        return RequestField.DROP
    if plain in _CLAIMED or plain.startswith(_CLAIMED_PREFIXES):
        return RequestField.CLAIM
    return _ASKED.get(key, RequestField.PASS)


def _response_field(name: bytes) -> int:
    key = name.lower()
    if key in _ANSWERED:
        return _ANSWERED[key]
    if key in HOP_BY_HOP or key.startswith(b"proxy-"):
        return ResponseField.DROP
    return ResponseField.SHARED if key in _ORIGIN_WIDE else ResponseField.PASS


def _remembering(decide: Callable[[bytes], int]) -> Callable[[bytes], int]:
    """The same decision, remembered for names that are not so long that they would cost much memory."""
    remembered = lru_cache(_REMEMBERED)(decide)
    return lambda name: remembered(name) if len(name) <= _LONGEST else decide(name)


request_field = _remembering(_request_field)
"""What becomes of a request's field of this name: a `RequestField`."""
response_field = _remembering(_response_field)
"""What becomes of an answer's field of this name: a `ResponseField`."""
