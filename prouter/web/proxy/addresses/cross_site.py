"""Protection of jobs from pages of other origins that use what a visitor's browser adds to requests by itself.

A browser adds cookies, a remembered password (Basic) and the cookie of a login in front to requests of other sites'
pages as well, SameSite cookies at least to those of the same site: jobs with host names of their own are all one site.
A job that leaves access to the router would obey such requests. So they may only lead somebody to a job, or read what
the job itself shares with the page's origin (CORS). Programs that are no browsers name no origin and no site.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from prouter.access.roles import Principal
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.messages.heads import RequestHead

__all__ = ["changes_something", "is_foreign", "is_misused"]

_SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods by which nothing changes (RFC 9110 section 9.2.1)."""
_OVERRIDES = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""Fields by which some servers take another method than the request's."""


def changes_something(head: RequestHead) -> bool:
    """Whether a request may change something, or begins to speak another protocol."""
    if head.method not in _SAFE_METHODS or head.upgrade:
        return True
    return any(name.lower().replace(b"_", b"-") in _OVERRIDES for name, _value in head.headers)


def is_misused(forwarded: Forwarded, principal: Principal, *, sandboxed: bool = False) -> bool:
    """Whether a page of another origin has a browser use credentials at a job that it did not ask its user for.

    Args:
        principal: whom the credentials let in.
        sandboxed: whether the request is for a page in a sandbox, or from one: its own requests come from an opaque
            origin. What they can read is bound to the pass in their path.
    """
    if not principal.ambient:
        return False
    head = forwarded.head
    if not is_foreign(forwarded):
        return False
    if changes_something(head):
        return True
    # A script or style of the job, embedded in another origin's page, would tell that page what is in it.
    embeds = any(name.lower() == b"sec-fetch-mode" and value == b"no-cors" for name, value in head.headers)
    return embeds and not sandboxed


def is_foreign(forwarded: Forwarded) -> bool:
    """Whether a browser says that it sends a request for a page of another origin."""
    head = forwarded.head
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
