"""The router's connections with agents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import falcon

from prouter.errors import NotFound, Overloaded
from prouter.web.admin.files.ranges import etag_in
from prouter.web.admin.requests.body import discard_body
from prouter.web.admin.requests.context import ApiRequest, send_json
from prouter.web.shared_call import SharedCall

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Connections"]

_CALL_TIMEOUT = 30.0
_CHANGES = 5
"""New versions of a list that may come while it is read."""


class Connections:
    """``/connections`` and ``/connections/UID``

    Dashboards poll them. So requests that come at once share a question to the broker, which answers with an ETag alone
    when nothing has changed. What was answered before is no answer to a later request: it may be older than what
    another worker has shown meanwhile.
    """

    def __init__(self, router: RouterClient) -> None:
        self._router = router
        self._fresh = SharedCall(self._ask)
        self._etag = ""
        self._answer = b""
        self._entries: dict[str, dict[str, Any]] | None = None
        """By uid; None until somebody asks for a single one."""

    def _ask(self) -> None:
        """Ask for the list, piece by piece when it is long; anew when it has changed too much meanwhile."""
        answer = self._call({"etag": self._etag})
        if "connections" not in answer:
            return
        etag, pieces = answer["etag"], [answer["connections"]]
        changes = 0
        while answer.get("next") is not None:
            answer = self._call({"of": etag, "from": answer["next"]})
            if answer["etag"] != etag:
                etag, pieces = answer["etag"], []
                changes += 1
                if changes == _CHANGES:
                    raise Overloaded("the list of connections changes faster than it can be read", retry_after=1)
            pieces.append(answer["connections"])
        self._answer, self._etag = b"".join(pieces), etag
        self._entries = None

    def _call(self, args: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._router.call("connections", args, timeout=_CALL_TIMEOUT)
        return answer

    def _refresh(self) -> None:
        """Have an answer that is not older than this call."""
        self._fresh.get(_CALL_TIMEOUT)

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
        self._refresh()
        send_json(resp, {**self._entry(connection), "draining": on})
