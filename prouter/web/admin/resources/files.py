"""Files of a job's sandbox: upload, download, list, delete, make directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon

from prouter.conditions import Conditions, entity_tags
from prouter.errors import IsDirectory
from prouter.web.admin.files.downloads import Download
from prouter.web.admin.files.file_paths import path_below
from prouter.web.admin.files.listing import ListingBody
from prouter.web.admin.files.streams import StreamBody, open_io, sandbox_route, send_body
from prouter.web.admin.requests import query
from prouter.web.admin.requests.body import discard_body
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.admin.requests.same_origin import refuse_foreign
from prouter.web.admin.requests.upload_fields import body_of, conditional, refuse_unfit
from prouter.web.prefaces import patience_for

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["Files"]


class Files:
    """The resource ``JOB_PATH/file/REL``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Send a file, whole or in ranges, or the listing of a directory."""
        path = path_below(req.raw_path)
        remove = query.flag(req, "remove") and req.method == "GET"
        if remove:
            refuse_foreign(req)
        route = sandbox_route(self._router, connection, job)
        try:
            Download(self._router, route, path, remove).respond(req, resp)
        except IsDirectory:
            self._list(req, resp, route, path)

    on_head = on_get

    def _list(self, req: ApiRequest, resp: falcon.Response, route: JobRoute, path: bytes) -> None:
        if (match := req.headers.get("IF-MATCH")) is not None:
            Conditions(match=entity_tags(match) or ()).check(exists=True)
        if req.headers.get("IF-NONE-MATCH", "").strip() == "*":
            resp.status = 304
            return
        io, _preface = open_io(self._router, route, {"kind": "file.list", "path": path})
        body = ListingBody(io, path, route.record.uid, patience_for(self._router.config))
        resp.content_type = falcon.MEDIA_JSON
        resp.delete_header("Accept-Ranges")
        if req.method == "HEAD":
            body.close()
            resp.stream = iter(())  # of unknown length, like the listing
        else:
            resp.stream = body

    def on_post(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Store the request body as a file, or make a directory."""
        path = path_below(req.raw_path)
        refuse_unfit(req, "file")
        mode, executable = query.octal(req, "mode"), query.flag(req, "executable")
        if query.flag(req, "directory"):
            self._make_directory(req, resp, connection, job, path)
            return
        target = {
            "kind": "file.write",
            "path": path,
            "mode": mode,
            "executable": executable,
            "size": body_size(req),
        }
        target = conditional(target, req)
        route = sandbox_route(self._router, connection, job)
        result = send_body(self._router, route, target, body_of(req), patient="HTTP_EXPECT" in req.env)
        resp.set_header("ETag", result["etag"])
        resp.data = b""

    on_put = on_post

    def _make_directory(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, path: bytes) -> None:
        discard_body(req)
        made = self._ask(connection, job, conditional({"kind": "file.mkdir", "path": path}, req))
        resp.status = 201 if made["created"] else 200
        resp.data = b""

    def on_delete(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Delete a file or a directory."""
        path = path_below(req.raw_path)
        recursive = query.flag(req, "recursive")
        discard_body(req)
        target = {"kind": "file.delete", "path": path, "recursive": recursive}
        self._ask(connection, job, conditional(target, req))
        resp.status = 204

    def _ask(self, connection: str, job: str, target: dict[str, Any]) -> dict[str, Any]:
        """Open a stream that has no bytes and return its preface."""
        route = sandbox_route(self._router, connection, job)
        io, preface = open_io(self._router, route, target)
        StreamBody(io, 0, job, None).close()
        return preface


def body_size(req: ApiRequest) -> int | None:
    """Return the length of the request body in bytes; None if it is chunked."""
    if "HTTP_TRANSFER_ENCODING" in req.env:
        return None
    return req.content_length or 0
