"""Flows by which others reach a job's server: URLs for browsers, share links, bridges."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from prouter.client.core.errors import RouterError
from prouter.client.core.flow import Flow, Request
from prouter.client.core.models import Bridge, Share
from prouter.client.core.paths import segment
from prouter.client.core.requests import make_once, post
from prouter.client.core.retries import Context, call, call_json

__all__ = ["bridge", "bridges", "open_url", "share", "shares", "unbridge", "unshare"]


def open_url(context: Context, path: str, page: str = "") -> Flow[str]:
    """Return a URL that lets a browser in to the job's server, once followed within a minute.

    Args:
        page: path and query below the job's address, at which to begin.

    Raises:
        RouterError: the job has no server, or the router told no URL.
    """
    answer = yield from call_json(context, post(f"{path}/pass"))
    url = answer.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise RouterError("the router told no URL for a browser: check its version, and the URL you use for it")
    page = page.lstrip("/")
    if not page:
        return url
    return f"{url}&next=/{quote(page)}" if "?" in url else url + page


def bridge(context: Context, path: str, url: str, at: str) -> Flow[str]:
    """Connect the job's WebSocket at a path with another server's; return the bridge's uid."""
    request = post(f"{path}/wsconnect/{at.lstrip('/')}", {"url": url}, silence=max(context.timeout, 60.0))
    response = yield from call(context, request, safe=False)
    return response.headers.get("x-prouter-bridge", "")


def bridges(context: Context, path: str) -> Flow[list[Bridge]]:
    """Return a job's bridges."""
    answer = yield from call_json(context, Request("GET", f"{path}/wsconnect"))
    return [Bridge.of(one) for one in answer.get("bridges", [])]


def unbridge(context: Context, path: str, uid: str) -> Flow[None]:
    """End a bridge."""
    yield from call(context, Request("DELETE", f"{path}/wsconnect/{segment(uid)}"), gone=True)


def share(context: Context, path: str, *, expires: float | None, name: str | None, methods: str) -> Flow[Share]:
    """Make a share link; exactly one."""
    body: dict[str, Any] = {"methods": methods}
    if expires is not None:
        body["expires"] = expires
    if name is not None:
        body["name"] = name
    return Share.of((yield from make_once(context, f"{path}/share", body)))


def shares(context: Context, path: str) -> Flow[list[Share]]:
    """Return a job's share links, without their URLs."""
    answer = yield from call_json(context, Request("GET", f"{path}/share"))
    return [Share.of(one) for one in answer.get("shares", [])]


def unshare(context: Context, path: str, identifier: str) -> Flow[None]:
    """End a share link and its open connections."""
    yield from call(context, Request("DELETE", f"{path}/share/{segment(identifier)}"), gone=True)
