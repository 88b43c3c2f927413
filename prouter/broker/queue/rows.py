"""Rows of the store's table `queue`: what the next broker needs to go on with a queued job."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.queue.item import Item, Shape
from prouter.fabric.frames import pack_body, unpack_body

__all__ = ["QueueRows"]

_SAVE = "INSERT OR REPLACE INTO queue (job, body) VALUES (?, ?)"


class QueueRows:
    """Reads and writes these rows."""

    def __init__(self, env: Env) -> None:
        self._env = env

    def save(self, item: Item, then: Callable[[], None] | None = None) -> None:
        """Store a job as it is now; call `then` once that is committed."""
        body = pack_body(
            {
                "name": item.name,
                "owner": item.owner,
                "selector": item.shape.text,
                "until": item.until,
                "since": item.since,
                "number": item.number,
                "tag": item.tag,
                "start": item.start,
                "start_id": item.start_id,
                "connection": item.connection,
            }
        )
        done = None if then is None else lambda _now: then()
        self._env.store.submit(_SAVE, item.uid, body, done=done)

    def erase(self, uid: str) -> None:
        """Delete a job's row."""
        self._env.store.submit("DELETE FROM queue WHERE job = ?", uid)

    def read(self, uid: str, body: bytes) -> Item:
        """The job of a row."""
        known: dict[str, Any] = unpack_body(body)
        shape = Shape(known["selector"], json.loads(known["selector"]))
        item = Item(uid, known["name"], known["owner"], shape, known["until"], known["since"])
        item.number, item.tag, item.connection = known["number"], known["tag"], known["connection"]
        item.start, item.start_id = known["start"], known["start_id"]
        return item
