"""Archives of a job's sandbox: packed into a response, unpacked from a request body."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from prouter.web.admin.files.file_paths import path_below
from prouter.web.admin.files.streams import StreamBody, open_io, sandbox_route, send_body
from prouter.web.admin.requests import query
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.admin.requests.upload_fields import body_of, conditional, refuse_unfit
from prouter.web.admin.resources.files import body_size

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["FORMATS", "Archives"]

FORMATS = {
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tar.zst": "application/zstd",
    "zip": "application/zip",
}
"""Formats for downloads, with their media types."""


class Archives:
    """The resources ``JOB_PATH/archive`` and, for a directory in the sandbox, ``JOB_PATH/archive/REL``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Send an archive, which is packed meanwhile."""
        path = path_below(req.raw_path)
        compress = query.flag(req, "compress")
        form = query.choice(req, "format", tuple(FORMATS)) or ("tar.gz" if compress else "tar")
        target = {
            "kind": "archive.read",
            "path": path,
            "include": query.repeated(req, "include"),
            "exclude": query.repeated(req, "exclude"),
            "format": form,
        }
        route = sandbox_route(self._router, connection, job)
        io, preface = open_io(self._router, route, target)
        size = preface.get("size")
        resp.content_type = FORMATS[form]
        resp.set_header("Content-Disposition", f'attachment; filename="{route.record.uid}.{form}"')
        if size is not None:
            resp.set_header("Content-Length", str(size))
        # No time limit: between two bytes the agent may search a large tree in which nothing matches.
        body = StreamBody(io, size, job, self._router.config.control.response_timeout or None)
        if req.method == "HEAD":
            body.close()
            resp.stream = iter(())  # of unknown length, unless set above
        else:
            resp.stream = body

    on_head = on_get

    def on_post(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, rest: str = "") -> None:
        """Unpack the body: tar, zip or another format, by its content."""
        refuse_unfit(req, "archive")
        target = {"kind": "archive.write", "path": path_below(req.raw_path), "size": body_size(req)}
        target = conditional(target, req)
        route = sandbox_route(self._router, connection, job)
        send_body(self._router, route, target, body_of(req), patient="HTTP_EXPECT" in req.env)
        resp.data = b""

    on_put = on_post
