"""The router's connections with agents."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import falcon
from gevent.lock import Semaphore

from prouter.api.body import discard_body
from prouter.api.context import ApiRequest, send_json
from prouter.api.ranges import etag_in
from prouter.errors import NotFound

if TYPE_CHECKING:
    from prouter.api.client import RouterClient

__all__ = ["Connections"]

FRESH = 0.25
"""Seconds an answer is good for; agents that come and go, and calls that change one, end it at once."""
_CALL_TIMEOUT = 30.0


class Connections:
    """``/connections`` and ``/connections/UID``; dashboards poll them, so the broker is asked only now and then."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router
        self._lock = Semaphore()
        self._good_until = 0.0
        self._generation = 0
        self._etag = ""
        self._answer = b""
        self._entries: dict[str, dict[str, Any]] | None = None
        """By uid; None until somebody asks for a single one."""
        router.subscribe(self._on_event)

    def _on_event(self, name: str, _body: dict[str, Any]) -> None:
        if name == "agent":
            self._outdate()

    def _outdate(self) -> None:
        self._generation += 1
        self._good_until = 0.0

    def _refresh(self) -> None:
        """Have an answer that is good; of many requests at once only one asks the broker."""
        if time.monotonic() < self._good_until:
            return
        with self._lock:
            if time.monotonic() < self._good_until:
                return
            generation = self._generation
            answer = self._router.call("connections", {"etag": self._etag}, timeout=_CALL_TIMEOUT)
            if "connections" in answer:
                self._answer, self._etag = answer["connections"], answer["etag"]
                self._entries = None
            if self._generation == generation:
                self._good_until = time.monotonic() + FRESH

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """All of them; 304 when nothing has changed since the ETag the client knows."""
        self._refresh()
        etag = f'W/"{self._etag}"'
        resp.set_header("ETag", etag)
        known = req.get_header("If-None-Match")
        if known is not None and etag_in(known, etag, weak=True):
            resp.status = 304
        else:
            resp.data = self._answer

    on_head = on_get

    def on_get_one(self, _req: ApiRequest, resp: falcon.Response, connection: str) -> None:
        """One of them."""
        self._refresh()
        send_json(resp, self._entry(connection))

    on_head_one = on_get_one

    def _entry(self, connection: str) -> dict[str, Any]:
        if self._entries is None:
            self._entries = {entry["uid"]: entry for entry in json.loads(self._answer)["connections"]}
        entry = self._entries.get(connection)
        if entry is None:
            raise NotFound(f"connection '{connection}' is not found")
        return entry

    def on_post_drain(self, req: ApiRequest, resp: falcon.Response, connection: str) -> None:
        """The agent takes no new jobs from now on."""
        self._set_drain(req, resp, connection, on=True)

    def on_post_resume(self, req: ApiRequest, resp: falcon.Response, connection: str) -> None:
        """The agent takes new jobs again."""
        self._set_drain(req, resp, connection, on=False)

    def _set_drain(self, req: ApiRequest, resp: falcon.Response, connection: str, *, on: bool) -> None:
        discard_body(req)
        self._router.call("agents.drain", {"connection": connection, "on": on}, timeout=_CALL_TIMEOUT)
        self._outdate()
        self._refresh()
        send_json(resp, {**self._entry(connection), "draining": on})
