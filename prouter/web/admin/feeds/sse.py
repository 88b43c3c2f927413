"""Server-sent events (WHATWG HTML, section 9.2) as bytes."""

from __future__ import annotations

import json
from typing import Any

import falcon

__all__ = ["COMMENT", "HEARTBEAT", "MEDIA_TYPE", "RETRY", "event", "flow", "start", "wanted"]

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = 15.0
"""Seconds of silence after which a comment shows that the connection is alive."""
COMMENT = b": still here\n\n"
_WRITE_AHEAD = 64 * 1024
"""Bytes that may be buffered for a client."""
RETRY = b"retry: 2000\n\n"
"""Sent first: milliseconds after which a browser connects again."""


def event(name: str, data: dict[str, Any], event_id: str | int | None = None) -> bytes:
    """Return one event, whose data is one line of JSON."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


def wanted(req: falcon.Request) -> bool:
    """Return whether the client asks for events rather than plain text."""
    return MEDIA_TYPE in req.get_header("Accept", default="")


def start(req: falcon.Request, resp: falcon.Response, body: Any) -> None:
    """Respond with a stream of events that no proxy on the way buffers."""
    resp.content_type = MEDIA_TYPE
    flow(req, resp, body)


def flow(req: falcon.Request, resp: falcon.Response, body: Any) -> None:
    """Respond with a long-lived body: no proxy buffers it, and a client that does not read costs little memory."""
    resp.set_header("X-Accel-Buffering", "no")
    resp.stream = body
    write_ahead = req.env.get("prouter.write_ahead")
    if write_ahead is not None:
        write_ahead(_WRITE_AHEAD)
