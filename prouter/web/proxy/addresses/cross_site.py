"""Protection of jobs from pages of other sites that use a visitor's password.

A browser that has asked its user for name and password (Basic) adds them to every later request to that origin, also to
those of other sites' pages. A job that leaves access to the router would obey them. Only Basic can be used in this way:
no page can set Authorization for another origin without asking first (the Fetch standard's preflight), which gets 401.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from prouter.access.credentials import authorization
from prouter.web.proxy.addresses.forwarded import Forwarded

__all__ = ["uses_a_visitors_password"]

_SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})


def uses_a_visitors_password(forwarded: Forwarded) -> bool:
    """Whether a page of another origin has a browser send a request that may change something, or a WebSocket's."""
    head = forwarded.head
    if head.method in _SAFE_METHODS and not head.upgrade:
        return False  # links and embedded pages of other sites are fine, and their scripts cannot read the response
    if (authorization(head.headers) or b"")[:6].lower() != b"basic ":
        return False
    told = {name.lower(): value for name, value in head.headers if len(name) <= 14}
    site = told.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = told.get(b"origin")
    return origin is not None and _host(origin) not in (head.host.lower(), forwarded.public.host.lower())


def _host(origin: bytes) -> bytes:
    """Return the host and port of an origin; empty if it names none."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower().encode("latin-1")
    except ValueError:
        return b""
