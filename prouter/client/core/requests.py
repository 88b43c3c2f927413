"""Requests with a body of JSON, and those that make what the router shows only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prouter.client.core.errors import Conflict
from prouter.client.core.flow import Flow, Request
from prouter.client.core.paths import segment
from prouter.client.core.retries import Context, call, call_json

__all__ = ["make_once", "post"]

_JSON = {"Content-Type": "application/json"}


def post(path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None, **how: Any) -> Request:
    """Return a POST of JSON, with an idempotency key."""
    content = json.dumps(body).encode() if body is not None else b""
    headers = {**(_JSON if body is not None else {}), **({"Idempotency-Key": key} if key is not None else {})}
    return Request("POST", path, headers, content, **how)


def make_once(context: Context, path: str, body: Mapping[str, Any]) -> Flow[dict[str, Any]]:
    """Make what the router shows only once, a token or a share link; return its answer.

    If that answer was lost, what the lost attempt made is deleted, and another one is made.
    """
    while True:
        try:
            return (yield from call_json(context, post(path, body, key=context.new_key())))
        except Conflict as error:
            if error.made is None:
                raise
            yield from call(context, Request("DELETE", f"{path}/{segment(error.made)}"), gone=True)
