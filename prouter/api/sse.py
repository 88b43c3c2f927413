"""Server-sent events (WHATWG HTML, section 9.2) as bytes."""

from __future__ import annotations

import json
from typing import Any

import falcon

__all__ = ["COMMENT", "HEARTBEAT", "MEDIA_TYPE", "RETRY", "event", "start", "wanted"]

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = 15.0
"""Seconds of silence after which a comment shows that the connection lives."""
COMMENT = b": still here\n\n"
RETRY = b"retry: 2000\n\n"
"""Sent first: how many milliseconds a browser waits before it connects again."""


def event(name: str, data: dict[str, Any], event_id: str | int | None = None) -> bytes:
    """One event whose data is one line of JSON."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


def wanted(req: falcon.Request) -> bool:
    """Whether the client asks for events rather than for plain text."""
    return MEDIA_TYPE in req.get_header("Accept", default="")


def start(resp: falcon.Response, body: Any) -> None:
    """Answer with a stream of events that no proxy on the way holds back."""
    resp.content_type = MEDIA_TYPE
    resp.set_header("X-Accel-Buffering", "no")
    resp.stream = body
