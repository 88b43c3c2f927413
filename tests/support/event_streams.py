"""A reader of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import requests

__all__ = ["log_bytes", "read_events"]


def read_events(answer: requests.Response) -> Iterator[dict[str, Any]]:
    """Yield events as maps of their fields, with ``data`` decoded; comments are skipped."""
    fields: dict[str, Any] = {}
    for line in answer.iter_lines(chunk_size=1):
        name, separator, value = line.decode().partition(": ")
        if separator and name:
            fields[name] = json.loads(value) if name == "data" else value
        elif not line:
            if "event" in fields:
                yield fields
            fields = {}


def log_bytes(event: dict[str, Any]) -> bytes:
    """Return the bytes that a ``log`` event holds."""
    data = event["data"]
    return base64.b64decode(data["base64"]) if "base64" in data else str(data["text"]).encode()
