"""Which header fields pass to a job and back, decided by name alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prouter.access.cookies import without_own
from prouter.config.router import RouterControl
from prouter.web.proxy.addresses.forwarded import FORWARDED
from prouter.web.proxy.messages.heads import HOP_BY_HOP

__all__ = ["HOPS", "REQUEST_FIELDS", "RESPONSE_FIELDS", "RequestField", "RequestFields", "ResponseField"]

HOPS = b"x-prouter-via"
"""Pseudonyms of the routers that a request came through; docs/decisions/proxy-worker.md says why it is not Via."""

_OURS = b"x-prouter-"
"""Only the router sets these fields of requests: servers may take the client's name from them."""
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
"""Fields from which servers take the client, scheme or path that a proxy saw (docs/http-api.md lists them)."""
_ORIGIN_WIDE = frozenset(
    {
        b"accept-ch",
        b"alt-svc",
        b"attribution-reporting-register-source",
        b"attribution-reporting-register-trigger",
        b"clear-site-data",
        b"critical-ch",
        b"expect-ct",
        b"nel",
        b"observe-browsing-topics",
        b"origin-agent-cluster",
        b"origin-isolation",
        b"origin-policy",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"report-to",
        b"sec-session-challenge",
        b"sec-session-registration",
        b"secure-session-challenge",
        b"secure-session-registration",
        b"service-worker-allowed",
        b"set-login",
        b"shared-storage-write",
        b"strict-transport-security",
        b"use-as-dictionary",
    }
)
"""Fields that count for a whole origin: a job that shares its origin with others must not set them."""
_LONGEST = 64
"""Bytes of a name whose decision is remembered."""
_REMEMBERED = 2048
"""Names whose decisions are remembered."""


class RequestField:
    """What becomes of a request's field. PASS is 0, so that the loop over a head tests for it first."""

    PASS = 0
    DROP = 1
    CLAIM = 2
    """Passes if a trusted proxy sent it."""
    LENGTH = 3
    EXPECT = 4
    HOPS = 5
    CREDENTIALS = 6
    """Passes unless it has let the client in: the job must not learn the client's access token."""
    MAP = 7
    """Its value may hold the job's public address: paths in it lose the prefix where the target does."""
    LOCAL = 8
    """Its value holds the public host, unless the job expects requests for its local address."""
    COOKIES = 9
    """Passes without the router's own cookies, and those of ``control.drop_cookies``."""


class ResponseField:
    """What becomes of a response's field. PASS is 0."""

    PASS = 0
    DROP = 1
    SHARED = 2
    """Passes if the job has an origin of its own."""
    LENGTH = 3
    UPGRADE = 4
    MAP = 5
    """Its value may hold the job's address as the job sees it."""
    COOKIE = 6
    """Likewise; a job must not set the router's own cookies."""
    OPENER = 7
    """Passes unless it would put a job into one group of windows with the router's own pages."""


_REQUESTS = {
    b"authorization": RequestField.CREDENTIALS,
    b"content-length": RequestField.LENGTH,
    b"cookie": RequestField.COOKIES,
    b"expect": RequestField.EXPECT,
    b"host": RequestField.LOCAL,
    b"origin": RequestField.LOCAL,
    b"referer": RequestField.LOCAL,
    b"destination": RequestField.MAP,
    b"if": RequestField.MAP,
    HOPS: RequestField.HOPS,
    b"http2-settings": RequestField.DROP,  # for this hop only, and a proxy in front may have removed it from Connection
    b"proxy": RequestField.DROP,  # CGI makes HTTP_PROXY of it (CVE-2016-5385)
}
_RESPONSES = {
    b"content-length": ResponseField.LENGTH,
    b"upgrade": ResponseField.UPGRADE,
    b"proxy-status": ResponseField.PASS,
    b"x-prouter-error": ResponseField.DROP,  # it marks the router's own errors
    b"location": ResponseField.MAP,
    b"content-location": ResponseField.MAP,
    b"refresh": ResponseField.MAP,
    b"link": ResponseField.MAP,
    b"sourcemap": ResponseField.MAP,
    b"x-sourcemap": ResponseField.MAP,
    b"set-cookie": ResponseField.COOKIE,
    b"cross-origin-opener-policy": ResponseField.OPENER,
    b"access-control-allow-origin": ResponseField.MAP,
}


def _request_field(name: bytes) -> int:
    key = name.lower()
    if key in HOP_BY_HOP or key.startswith(b"proxy-"):
        return RequestField.DROP
    plain = key.replace(b"_", b"-")  # CGI and WSGI map both to the same variable
    if plain in FORWARDED or (plain.startswith(_OURS) and key != HOPS):
        return RequestField.DROP
    if plain in _CLAIMED or plain.startswith(_CLAIMED_PREFIXES):
        # No proxy writes these with "_": a client did, and a proxy that removes its own fields let it pass.
        return RequestField.CLAIM if plain == key else RequestField.DROP
    return _REQUESTS.get(key, RequestField.PASS)


def _response_field(name: bytes) -> int:
    key = name.lower()
    if key in _RESPONSES:
        return _RESPONSES[key]
    if key in HOP_BY_HOP or key.startswith(b"proxy-"):
        return ResponseField.DROP
    return ResponseField.SHARED if key in _ORIGIN_WIDE else ResponseField.PASS


class _Decisions(dict[bytes, int]):
    """Decisions by name, made at the first look-up and remembered.

    A dictionary whose look-up runs in C: with a cache behind a function, a head of ten fields would cost 1 µs more.

    Args:
        decide: makes the decision for a name.
    """

    def __init__(self, decide: Callable[[bytes], int]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, name: bytes) -> int:
        decision = self._decide(name)
        if len(name) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()  # names are the clients' to choose: they must not fill the memory
            self[name] = decision
        return decision


class RequestFields(_Decisions):
    """What becomes of a request's field, by its name as sent: a `RequestField`.

    Args:
        headers: names of fields that no job gets (``control.drop_headers``); ``*`` at the end stands for anything.
        cookies: names of cookies that no job gets (``control.drop_cookies``), likewise.
        claims: names of fields that jobs get from trusted proxies only, besides the usual ones.
    """

    def __init__(self, headers: Sequence[str] = (), cookies: Sequence[str] = (), claims: Sequence[str] = ()) -> None:
        super().__init__(self._decision)
        self._headers = _names([name.lower().replace("_", "-") for name in headers])
        self._cookies = _names(cookies)
        self._claims = frozenset(name.lower().encode("ascii") for name in claims)

    @classmethod
    def of(cls, control: RouterControl) -> RequestFields:
        """Return the decisions by the configuration."""
        claims = [name for name in (control.user_header, control.group_header) if name is not None]
        return cls(control.drop_headers, control.drop_cookies, claims)

    def cookies(self, value: bytes) -> bytes | None:
        """Return a value of Cookie as a job gets it; None if no cookie is left."""
        kept = without_own(value)
        if kept is None or self._cookies is None:
            return kept
        pairs = kept.split(b";")
        others = [pair for pair in pairs if not self._cookies.fullmatch(pair.partition(b"=")[0].strip())]
        return kept if len(others) == len(pairs) else b";".join(others).strip() or None

    def _decision(self, name: bytes) -> int:
        if self._headers is not None and self._headers.fullmatch(name.lower().replace(b"_", b"-")):
            return RequestField.DROP
        key = name.lower()
        if (plain := key.replace(b"_", b"-")) in self._claims:
            return RequestField.CLAIM if plain == key else RequestField.DROP
        return _request_field(name)


def _names(patterns: Sequence[str]) -> re.Pattern[bytes] | None:
    """Return what matches these names; None for no names."""
    parts = [re.escape(one.removesuffix("*")) + (".*" if one.endswith("*") else "") for one in patterns]
    return re.compile("|".join(parts).encode("ascii"), re.DOTALL) if parts else None


REQUEST_FIELDS = RequestFields()
"""The decisions of a router whose configuration names no fields and cookies."""
RESPONSE_FIELDS = _Decisions(_response_field)
"""What becomes of a response's field, by its name as sent: a `ResponseField`."""
