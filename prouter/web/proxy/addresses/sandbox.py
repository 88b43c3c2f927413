"""The sandbox in which browsers show jobs that are shared below their path.

The policy gives the page an opaque origin: it has no cookies and no storage, and can read nothing of the router's
origin. Its own requests come from that opaque origin, which browsers name ``null``, without cookies. So the pass of its
visitor is in the path, which relative links keep; and the job's responses allow an opaque origin to read them. That
tells nothing to anybody who does not know the path.
"""

from __future__ import annotations

from prouter.web.proxy.messages.heads import RequestHead

__all__ = ["REPLACED", "sandbox_lines"]

REPLACED = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-origin",
        b"cross-origin-embedder-policy",
        b"cross-origin-resource-policy",
    }
)
"""Fields of the job that would keep a page with an opaque origin from its own resources, or let in other origins."""
_POLICY = (
    b"Content-Security-Policy: sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads\r\n"
    b"Referrer-Policy: no-referrer\r\n"
)
_READABLE = b"Access-Control-Allow-Origin: null\r\nAccess-Control-Allow-Credentials: true\r\n"


def sandbox_lines(head: RequestHead) -> bytes:
    """Return the header lines that put the response to a request into the sandbox."""
    if any(name.lower() == b"origin" and value == b"null" for name, value in head.headers):
        return _POLICY + _READABLE + b"Vary: Origin\r\n"
    return _POLICY + b"Vary: Origin\r\n"
