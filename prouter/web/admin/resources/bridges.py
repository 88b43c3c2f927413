"""WebSocket bridges between a job and another server: make, list, end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import falcon

from prouter.access.roles import OPEN_ROUTER
from prouter.errors import JobTimeout, NotFound
from prouter.jobs import rfc3339
from prouter.requests import BridgeRequest
from prouter.web.admin.requests.body import discard_body, read_model
from prouter.web.admin.requests.bridge_headers import handshake_headers
from prouter.web.admin.requests.context import ApiRequest, principal_of, send_json
from prouter.web.bridges import Bridges
from prouter.web.proxy.addresses.fields import RequestFields

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["BridgeResource"]

_CALL_TIMEOUT = 30.0
_ENDS_WITHIN = 10.0


class BridgeResource:
    """The resources ``JOB_PATH/wsconnect`` (list), ``…/wsconnect/PATH`` (make) and ``…/wsconnect/UID`` (end)."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router
        self._bridges = Bridges(router)
        control = router.config.control
        self._fields = RequestFields.of(control)

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """List the job's bridges, of all workers."""
        send_json(resp, {"bridges": self._list(connection, job)})

    def on_post(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Bridge the job's WebSocket at PATH with the one at ``url``."""
        request = read_model(BridgeRequest, req)
        target = req.env.get("RAW_URI", req.raw_path)
        path, _, query = target.partition("?")
        segments = path.split("/", 5)
        inner = "/" + (segments[5] if len(segments) == 6 else "")
        inner += f"?{query}" if query else ""
        principal = principal_of(req)
        headers = handshake_headers(req.headers, credentials=principal is OPEN_ROUTER, fields=self._fields)
        if principal is not OPEN_ROUTER and self._router.assertions is not None:
            headers += self._router.assertions.fields(principal, connection, job)
        bridge = self._bridges.start(connection, job, inner, request.url, headers, principal)
        resp.set_header("X-PRouter-Bridge", bridge.uid)
        resp.data = b""

    def on_delete(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """End a bridge, and respond once it has ended."""
        discard_body(req)
        args = {"connection": connection, "job": job, "uid": rest}
        self._router.call("bridges.end", args, timeout=_CALL_TIMEOUT)
        deadline = time.monotonic() + _ENDS_WITHIN
        while self._exists(connection, job, rest):
            if time.monotonic() >= deadline:
                raise JobTimeout(
                    f"bridge '{rest}' is ending, but one of its servers has not confirmed the close yet", job=job
                )
            time.sleep(0.02)
        resp.status = falcon.HTTP_204

    def _exists(self, connection: str, job: str, uid: str) -> bool:
        try:
            return any(entry["uid"] == uid for entry in self._list(connection, job))
        except NotFound:  # the job was removed meanwhile
            return False

    def _list(self, connection: str, job: str) -> list[dict[str, Any]]:
        args: dict[str, Any] = {"connection": connection, "job": job}
        found: list[dict[str, Any]] = []
        while True:
            reply = self._router.call("bridges", args, timeout=_CALL_TIMEOUT)
            found += ({**bridge, "since": rfc3339(bridge["since"])} for bridge in reply["bridges"])
            if reply.get("next") is None:
                return found
            args["cursor"] = reply["next"]
