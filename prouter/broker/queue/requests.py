"""Fields of a request to queue a job, and the uid that queued jobs have in place of a connection's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from prouter.broker.queue.item import Shape

__all__ = ["is_queue_place", "queue_place", "shape_of", "waiting"]

_PREFIX = "queue-"


def queue_place(router: str) -> str:
    """The first part of the paths of jobs that were queued at the router with this uid."""
    return _PREFIX + hashlib.sha256(router.encode()).hexdigest()[:26]


def is_queue_place(connection: str) -> bool:
    """Whether this is the place of some router's queue, and no connection."""
    return connection.startswith(_PREFIX)


def waiting(args: dict[str, Any]) -> tuple[float | None, dict[str, Any] | None]:
    """Return how many seconds a job may wait in the queue, None for not at all, and the request to start it, if any."""
    queue, start = args.get("queue"), args.get("start")
    timeout = queue.get("timeout") if isinstance(queue, dict) else None
    known = isinstance(start, dict) and isinstance(start.get("request"), dict) and isinstance(start.get("key"), str)
    return (timeout if isinstance(timeout, (int, float)) else None), (start if known else None)


def shape_of(selector: dict[str, Any]) -> Shape:
    """Return the shape of jobs with this selector."""
    return Shape(json.dumps(selector, sort_keys=True, default=str), selector)
