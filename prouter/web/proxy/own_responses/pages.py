"""The router's own responses to requests for jobs: problem documents for programs, small pages for browsers.

A page about a condition that passes by itself (a job that starts, an agent that is away) reloads itself.
"""

from __future__ import annotations

import json
import re
import uuid
from html import escape
from math import ceil

from prouter.access.credentials import CHALLENGE
from prouter.errors import PRouterError
from prouter.jobs import State

__all__ = ["REASONS", "USABLE_ID", "error_response", "page", "prefers_html", "redirect", "request_id", "see_other"]

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    412: "Precondition Failed",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    421: "Misdirected Request",
    424: "Failed Dependency",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    507: "Insufficient Storage",
    508: "Loop Detected",
}

USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""A request id that is taken from a client."""
_RELOAD_SECONDS = 2
_HTML = frozenset({b"text/html", b"application/xhtml+xml"})
_JSON = frozenset({b"application/json", b"application/problem+json"})
_WEIGHT = re.compile(rb"q=([01](?:\.\d{0,3})?)")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>{reload}
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #f4f6f8; margin: 0; padding: 1rem;
  box-sizing: border-box; min-height: 100vh; display: grid; place-items: center; }}
main {{ background: #fff; border: 1px solid #d8dee4; border-radius: 10px; padding: 2rem 2.5rem; max-width: 36rem;
  box-shadow: 0 1px 3px #0001, 0 8px 24px #0000000d; }}
h1 {{ font-size: 1.3rem; line-height: 1.3; margin: 0 0 .75rem; display: flex; align-items: center; gap: .75rem; }}
h1::before {{ content: ""; flex: none; width: .8rem; height: .8rem; border-radius: 50%; background: #b42318; }}
.waiting h1::before {{ box-sizing: border-box; width: 1.1rem; height: 1.1rem; background: none;
  border: 3px solid #2f6feb40; border-top-color: #2f6feb; animation: turn 1s linear infinite; }}
p {{ margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
small {{ display: block; margin-top: 1.25rem; color: #5c6773; overflow-wrap: anywhere; }}
@keyframes turn {{ to {{ transform: rotate(1turn); }} }}
@media (prefers-reduced-motion: reduce) {{ .waiting h1::before {{ animation-duration: 6s; }} }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #e3e8ee; background: #14181d; }} main {{ background: #1c2229; border-color: #323b45; }}
  small {{ color: #9aa7b4; }} h1::before {{ background: #f97066; }}
}}
</style></head><body><main{waiting}><h1>{title}</h1><p>{detail}</p>{hint}<small>pRouter · {code} · request {request_id}
</small></main></body></html>
"""

_TITLES = {
    "job_starting": "This job is starting",
    "agent_unavailable": "This job's machine is out of reach",
    "job_ended": "This job has ended",
    "job_unreachable": "This job does not respond",
    "bad_response": "This job's response is not valid HTTP",
    "no_endpoint": "This job has no server",
    "job_timeout": "This job does not respond",
    "loop_detected": "This job leads back to the router",
    "not_found": "There is nothing here",
    "outside_prefix": "There is nothing here",
    "unknown_host": "This is not a name of this router",
    "unauthorized": "Please sign in",
    "role_needed": "This is not for you",
    "no_role": "This is not for you",
    "unusable_user": "This user name cannot be used",
    "limit_reached": "A limit is reached",
    "too_many_requests": "Too many requests",
    "link_refused": "This link is not valid",
    "needs_own_origin": "This job cannot be opened here",
    "share_needs_own_origin": "This job cannot be opened here",
    "share_read_only": "This link is for reading only",
    "overloaded": "Too busy right now",
}
_NOT_STARTED = "This job has not been started yet"


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the id for an error's response and log line: the client's ``X-Request-ID`` if usable, else a new one."""
    for name, value in headers:
        if name.lower() == b"x-request-id" and USABLE_ID.fullmatch(given := value.decode("latin-1")):
            return given
    return uuid.uuid4().hex[:16]


def error_response(error: PRouterError, *, accept: bytes, head_only: bool, request_id: str, close: bool) -> bytes:
    """Return a whole response for `error`: a page if `accept` prefers HTML, else problem+json (RFC 9457)."""
    status = error.status
    reason = REASONS.get(status, "Error")
    lines = [f"HTTP/1.1 {status} {reason}"]
    for_people = prefers_html(accept)
    if for_people:
        content_type = "text/html; charset=utf-8"
        body = page(error, reason, request_id)
    else:
        content_type = "application/problem+json"
        body = _problem(error, reason, request_id)
    lines += [
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store, must-revalidate",
        f"X-PRouter-Error: {error.code}",
        f"X-Request-ID: {request_id}",
    ]
    if status == 401:
        lines.append(f"WWW-Authenticate: {CHALLENGE}")
    if status in (429, 503):
        lines.append(f"Retry-After: {max(1, ceil(error.retry_after or 1))}")
    if close:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
    return head if head_only else head + body


def redirect(location: bytes, *, close: bool) -> bytes:
    """Return a whole redirect that keeps the method: 308 (RFC 9110 section 15.4.9)."""
    connection = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 308 Permanent Redirect\r\nLocation: %b\r\nContent-Length: 0\r\n%b%b\r\n" % (
        location,
        b"Cache-Control: no-store, must-revalidate\r\n",
        connection,
    )


def see_other(location: bytes, cookie: str = "") -> bytes:
    """Return a whole redirect to a page (RFC 9110 section 15.4.4), after which the connection is closed.

    The URL that led here may hold a secret: no later request names it as its referrer.

    Args:
        cookie: a value of Set-Cookie; empty for none.
    """
    lines = [
        b"HTTP/1.1 303 See Other",
        b"Location: " + location,
        b"Content-Length: 0",
        b"Cache-Control: no-store, must-revalidate",
        b"Referrer-Policy: no-referrer",
        b"Connection: close",
    ]
    if cookie:
        lines.append(b"Set-Cookie: " + cookie.encode("latin-1"))
    return b"\r\n".join([*lines, b"", b""])


def prefers_html(accept: bytes) -> bool:
    """Return whether a client asks for HTML by name and prefers it to JSON (RFC 9110 section 12.5.1)."""
    wanted = {b"html": 0.0, b"json": 0.0}
    first = b""
    for entry in accept.lower().split(b","):
        media, *parameters = (part.strip() for part in entry.split(b";"))
        kind = b"html" if media in _HTML else b"json" if media in _JSON else b""
        if kind:
            first = first or kind
            wanted[kind] = max(wanted[kind], _quality(parameters))
    if wanted[b"html"] == wanted[b"json"]:
        return wanted[b"html"] > 0 and first == b"html"
    return wanted[b"html"] > wanted[b"json"]


def _quality(parameters: list[bytes]) -> float:
    """Return the weight among a media range's parameters; 1 if there is no valid one."""
    for parameter in parameters:
        if match := _WEIGHT.fullmatch(parameter):
            return float(match[1])
    return 1.0


def _problem(error: PRouterError, reason: str, request_id: str) -> bytes:
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": reason,
        "status": error.status,
        "detail": error.told,
        "code": error.code,
        "request_id": request_id,
    }
    if error.job is not None:
        problem["job"] = error.job
    if error.state is not None:
        problem["state"] = error.state
    if error.limit is not None:
        problem["limit"] = error.limit._asdict()
    return json.dumps(problem).encode()


def page(error: PRouterError, reason: str, request_id: str) -> bytes:
    """Return a small HTML page about `error`.

    Args:
        reason: title for an error without a title of its own.
    """
    passing = error.status == 503
    title = _NOT_STARTED if error.state == State.NEW.value else _TITLES.get(error.code, reason)
    return _PAGE.format(
        title=escape(title),
        detail=escape(error.told[:1].upper() + error.told[1:]),
        code=escape(error.code),
        request_id=escape(request_id),
        reload=f'<meta http-equiv="refresh" content="{_RELOAD_SECONDS}">' if passing else "",
        waiting=' class="waiting"' if passing else "",
        hint="<p>This page reloads by itself.</p>" if passing else "",
    ).encode()
