"""The router's connections to agents."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import falcon

from prouter.config.directories import connections_version
from prouter.errors import InvalidRequest, NotFound, Overloaded
from prouter.process.shared_version import UNKNOWN, VersionReader
from prouter.web.admin.files.ranges import etag_in
from prouter.web.admin.requests import query
from prouter.web.admin.requests.body import discard_body
from prouter.web.admin.requests.context import ApiRequest, send_json
from prouter.web.admin.requests.frequent import Ready
from prouter.web.shared_call import SharedCall

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Connections"]

_CALL_TIMEOUT = 30.0
_MOST = 1000
"""Connections in a page, at most."""
_PAGE = 100
_CURSOR = re.compile(r"(\d{1,12}\.\d{1,9})-([0-9a-f]{32})", re.ASCII)
"""When the last connection of the page before was made, in seconds since the epoch, and its uid."""
_CHANGES = 5
"""Times the list may change while it is read in parts."""


class Connections:
    """The resources ``/connections`` and ``/connections/UID``.

    Dashboards poll them. So a worker keeps the list, and sends it while the version that the broker shows all workers
    is that of the list: nobody has been told of anything newer. For another version it calls the broker; simultaneous
    requests share a call, whose reply is an ETag alone if nothing has changed.
    """

    def __init__(self, router: RouterClient) -> None:
        self._router = router
        self._version = VersionReader(connections_version(router.config))
        self._fresh = SharedCall(self._ask)
        self._known = UNKNOWN
        """The version of the list."""
        self._etag = ""
        self._answer = b""
        self._entries: dict[str, dict[str, Any]] | None = None
        """Connections by uid; None until a single one is requested."""

    def _ask(self) -> None:
        """Get the list from the broker, in parts if it is long, and again if it changes between parts."""
        if self._is_current():  # since the call for requests that came earlier
            return
        if self._version.current() == UNKNOWN:
            self._version.reopen()
        reply = self._call({"etag": self._etag})
        version = reply.get("version", UNKNOWN)
        if "connections" not in reply:
            self._known = version
            return
        etag, pieces = reply["etag"], [reply["connections"]]
        changes = 0
        while reply.get("next") is not None:
            reply = self._call({"of": etag, "from": reply["next"]})
            if reply["etag"] != etag:
                etag, version, pieces = reply["etag"], reply.get("version", UNKNOWN), []
                changes += 1
                if changes == _CHANGES:
                    detail = "the list of connections changes faster than it can be read: send the request again"
                    raise Overloaded(detail, retry_after=1)
            pieces.append(reply["connections"])
        self._answer, self._etag, self._known = b"".join(pieces), etag, version
        self._entries = None

    def _call(self, args: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = self._router.call("connections", args, timeout=_CALL_TIMEOUT)
        return reply

    def _is_current(self) -> bool:
        """Whether nobody has been told of anything newer than the list. Without the broker that cannot be known."""
        return self._known != UNKNOWN and self._known == self._version.current() and self._router.ready

    def _refresh(self) -> None:
        """Have a list that is not older than this call."""
        if not self._is_current():
            self._fresh.get(_CALL_TIMEOUT)

    def ready(self) -> Ready | None:
        """Return all connections if the list is current."""
        return Ready(self._answer, f'W/"{self._etag}"') if self._is_current() else None

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send all connections or a page of them, or 304 if the client's ETag is current."""
        limit, cursor = query.integer(req, "limit", low=1, high=_MOST), query.text(req, "cursor")
        if limit is not None or cursor is not None:
            self._send_page(req, resp, limit or _PAGE, cursor)
            return
        self._refresh()
        etag = f'W/"{self._etag}"'
        resp.set_header("ETag", etag)
        known = req.get_header("If-None-Match")
        if known is not None and etag_in(known, etag, weak=True):
            resp.status = 304
        else:
            resp.data = self._answer

    on_head = on_get

    def _send_page(self, req: ApiRequest, resp: falcon.Response, limit: int, cursor: str | None) -> None:
        found = _CURSOR.fullmatch(cursor) if cursor is not None else None
        if cursor is not None and found is None:
            raise InvalidRequest("Invalid request: query parameter 'cursor' must be the 'next' of a page")
        after = (float(found[1]), found[2]) if found is not None else None
        known = req.get_header("If-None-Match")
        args: dict[str, Any] = {"limit": limit, "after": after}
        page = self._router.call("connections.page", args, timeout=_CALL_TIMEOUT)
        etag = f'W/"{page["etag"]}"'
        resp.set_header("ETag", etag)
        if known is not None and etag_in(known, etag, weak=True):
            resp.status = 304
            return
        following = page["next"]
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"connections":[%b],"next":%b}' % (
            page["connections"],
            json.dumps(f"{following[0]!r}-{following[1]}" if following is not None else None).encode("ascii"),
        )

    def on_get_one(self, _req: ApiRequest, resp: falcon.Response, connection: str) -> None:
        """Send one connection."""
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
        """Stop placing new jobs on the agent."""
        self._set_drain(req, resp, connection, on=True)

    def on_post_resume(self, req: ApiRequest, resp: falcon.Response, connection: str) -> None:
        """Place new jobs on the agent again."""
        self._set_drain(req, resp, connection, on=False)

    def _set_drain(self, req: ApiRequest, resp: falcon.Response, connection: str, *, on: bool) -> None:
        discard_body(req)
        self._router.call("agents.drain", {"connection": connection, "on": on}, timeout=_CALL_TIMEOUT)
        self._refresh()
        send_json(resp, {**self._entry(connection), "draining": on})
