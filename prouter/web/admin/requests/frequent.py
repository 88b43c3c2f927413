"""Responses to the reads that dashboards and probes repeat, without the app.

The connection sends them as it reads the request: no greenlet, no WSGI environment, no Falcon. A request gets one only
if the app would respond with 200 or 304 at once. Everything else is for the app, so that there is one place that
refuses: clients that may not ask, unknown host names, other methods and targets, lists for which the broker has to be
asked, and those so long that a slow client would have to be watched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from prouter.access.roles import OPEN_ROUTER, is_allowed
from prouter.conditions import entity_tags, matches
from prouter.config import RouterConfig
from prouter.web.admin.requests.context import CACHE_CONTROL, EXPIRES, new_id
from prouter.web.admin.requests.known_hosts import KnownHosts
from prouter.web.gunicorn.wsgi import JOINED, http_date
from prouter.web.metrics import counters
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.interfaces import Client
from prouter.web.proxy.messages.heads import BodyKind, RequestHead
from prouter.web.proxy.own_responses.pages import USABLE_ID
from prouter.web.route_roles import NEEDS
from prouter.web.router_client import RouterClient

__all__ = ["FrequentReads", "Ready", "ReadySource"]

_ALWAYS = f"cache-control: {CACHE_CONTROL}\r\nexpires: {EXPIRES}\r\n"
_REQUEST_ID, _CONDITION = b"x-request-id", b"if-none-match"
_LENGTHS = frozenset({len(_REQUEST_ID), len(_CONDITION)})


class Ready(NamedTuple):
    """JSON that can be sent at once, with its ETag, which is empty for none."""

    body: bytes
    etag: str


class ReadySource(Protocol):
    """A resource whose response may be at hand."""

    def ready(self) -> Ready | None:
        """Return the response as it is now; None if the broker has to be asked for it."""


class FrequentReads:
    """Sends what is at hand.

    Args:
        router: the worker's connection to the broker, with its limits.
        config: the router's configuration.
        sources: the resources, by operation; the operation's path is ``/`` and its name.
    """

    def __init__(self, router: RouterClient, config: RouterConfig, sources: Mapping[str, ReadySource]) -> None:
        self._hosts = KnownHosts(config, resolve=False)  # On the event loop nothing may block.
        # Requests that are counted are for the app, which refuses those that are too many.
        counts = router.limits is not None and bool(router.limits.per_owner)
        self._sources = {
            f"/{operation}".encode("ascii"): (source, NEEDS[operation])
            for operation, source in sources.items()
            if not counts
        }

    def send(self, client: Client, forwarded: Forwarded) -> bool:
        """Respond to a request and return True, or leave it to the app."""
        head = forwarded.head
        found = self._sources.get(head.target)
        if found is None or head.method != b"GET" or head.body != BodyKind.NONE or head.upgrade or head.expect:
            return False
        if client.buffer or client.out_size:  # Pipelined requests take turns, and who does not read has to wait.
            return False
        source, need = found
        principal = forwarded.principal
        if principal is None or not (principal is OPEN_ROUTER or is_allowed(principal, need)):
            return False
        if not all(map(self._hosts.accept, forwarded.hosts)):
            return False
        fields = _fields(head)
        ready = source.ready() if fields is not None else None
        if fields is None or ready is None:
            return False
        request_id, condition = fields
        tags = entity_tags(condition) if condition is not None and ready.etag else None
        known = tags is not None and matches(tags, ready.etag, weak=True)
        if not known and len(ready.body) > JOINED:
            return False
        status = 304 if known else 200
        keep_alive = head.keep_alive and not client.server.draining
        client.write(_response(ready, known=known, keep_alive=keep_alive, request_id=request_id))
        counters.current().count_response(counters.API, head.method, status, time.monotonic() - client.began)
        client.exchange_done(keep_alive)
        return True


def _response(ready: Ready, *, known: bool, keep_alive: bool, request_id: str) -> bytes:
    """Return the whole response, field by field as the app makes it.

    Args:
        known: whether the client has the body already.
    """
    content = f"content-length: {len(ready.body)}\r\ncontent-type: application/json\r\n"
    etag = f"etag: {ready.etag}\r\n" if ready.etag else ""
    head = (
        f"HTTP/1.1 {'304 Not Modified' if known else '200 OK'}\r\nDate: {http_date()}\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
        f"{_ALWAYS}{etag}x-request-id: {request_id}\r\n{'' if known else content}\r\n"
    ).encode("ascii")
    return head if known else head + ready.body


def _fields(head: RequestHead) -> tuple[str, str | None] | None:
    """Return the request's id and If-None-Match; None if one of the fields comes twice."""
    given: str | None = None
    condition: str | None = None
    for name, value in head.headers:
        if len(name) not in _LENGTHS:
            continue
        lower = name.lower()
        if lower == _REQUEST_ID:
            if given is not None:
                return None
            given = value.decode("latin-1")
        elif lower == _CONDITION:
            if condition is not None:
                return None
            condition = value.decode("latin-1")
    return given if given is not None and USABLE_ID.fullmatch(given) else new_id(), condition
