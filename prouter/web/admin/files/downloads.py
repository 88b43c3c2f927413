"""One download of one file: preconditions, byte ranges, and the response body."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import falcon

from prouter.errors import Conflict, ProtocolError, RangeNotSatisfiable
from prouter.transport.stream_io import StreamIO
from prouter.web.admin.files.ranges import Validators, byte_ranges
from prouter.web.admin.files.streams import StreamBody, open_io
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.prefaces import patience_for

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient
    from prouter.web.routes import JobRoute

__all__ = ["Download", "MultipartBody"]

_TYPE = "application/octet-stream"
_CONDITIONS = ("IF-MATCH", "IF-NONE-MATCH", "IF-MODIFIED-SINCE", "IF-UNMODIFIED-SINCE")
_ATTEMPTS = 5
"""Attempts at a download whose file changes between looking at it and opening it."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file that one request downloads.

    Attributes:
        path: relative to the sandbox.
        remove: delete the file after the client has received all of it.
    """

    router: RouterClient
    route: JobRoute
    path: bytes
    remove: bool = False

    def respond(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Fill in the response to a GET or HEAD.

        Raises:
            IsDirectory: the path names a directory.
            PRouterError: the file cannot be read for another reason.
        """
        headers = req.headers
        resp.set_header("Accept-Ranges", "bytes")
        resp.set_header("X-Content-Type-Options", "nosniff")
        ranged = "RANGE" in headers and req.method == "GET" and not self.remove
        if req.method == "HEAD" or ranged or any(name in headers for name in _CONDITIONS):
            self._respond_by_version(req, resp, headers, ranged)
        else:
            self._send_whole(req, resp, *self._open(0, None))

    def _respond_by_version(
        self, req: ApiRequest, resp: falcon.Response, headers: Mapping[str, str], ranged: bool
    ) -> None:
        """Look at the file, decide on ranges and preconditions, open it; repeat if it changed in between."""
        for _attempt in range(_ATTEMPTS):
            io, known = self._open(0, 0)
            self.body(io, 0).close()
            validators = Validators(known["etag"], known["mtime_ns"])
            self._describe(resp, known)
            if validators.not_modified(headers):
                resp.status = 304
                return
            if req.method == "HEAD":
                resp.set_header("Content-Length", str(known["size"]))
                resp.content_type = _TYPE
                return
            wanted = None
            if ranged and validators.range_applies(headers.get("IF-RANGE")):
                wanted = self._ranges(resp, headers["RANGE"], known["size"])
            if self._send(req, resp, wanted, known):
                return
        raise Conflict("the file changes faster than it can be read: send the request again", retry_after=1)

    def _ranges(self, resp: falcon.Response, header: str, size: int) -> list[tuple[int, int]] | None:
        try:
            return byte_ranges(header, size)
        except RangeNotSatisfiable:
            resp.set_header("Content-Range", f"bytes */{size}")
            raise

    def _send(
        self, req: ApiRequest, resp: falcon.Response, wanted: list[tuple[int, int]] | None, known: dict[str, Any]
    ) -> bool:
        """Open what is to be sent; return False if the file is no longer the `known` one."""
        start, stop = wanted[0] if wanted else (0, None)
        io, found = self._open(start, None if stop is None else stop - start)
        if found["etag"] != known["etag"]:
            io.reset("changed", "the file has changed")
            return False
        if wanted is None:
            self._send_whole(req, resp, io, found)
        elif len(wanted) == 1:
            resp.status = 206
            resp.content_type = _TYPE
            resp.set_header("Content-Range", f"bytes {start}-{start + found['length'] - 1}/{found['size']}")
            resp.set_stream(self.body(io, found["length"]), found["length"])
        else:
            body = MultipartBody(self, io, wanted, found)
            resp.status = 206
            resp.content_type = f"multipart/byteranges; boundary={body.boundary}"
            resp.set_stream(body, body.length)
        return True

    def _send_whole(self, req: ApiRequest, resp: falcon.Response, io: StreamIO, found: dict[str, Any]) -> None:
        self._describe(resp, found)
        resp.content_type = _TYPE
        length = found["length"]
        delivered = req.env.get("prouter.delivered", _at_once) if self.remove else None
        resp.set_stream(self.body(io, length, delivered), length)

    def _describe(self, resp: falcon.Response, found: dict[str, Any]) -> None:
        resp.set_header("ETag", found["etag"])
        resp.set_header("Last-Modified", Validators(found["etag"], found["mtime_ns"]).last_modified)
        mode = found.get("mode")  # earlier agents do not tell it
        if isinstance(mode, int):
            resp.set_header("X-PRouter-Mode", f"{mode & 0o777:03o}")

    def _open(self, offset: int, length: int | None) -> tuple[StreamIO, dict[str, Any]]:
        remove = self.remove and length is None
        target = {"kind": "file.read", "path": self.path, "offset": offset, "length": length, "remove": remove}
        return open_io(self.router, self.route, target, close=not remove)

    def body(self, io: StreamIO, length: int, delivered: Callable[[], None] | None = None) -> StreamBody:
        """Return the body for a part of the file, from a stream that was opened for it."""
        job, patience = self.route.record.uid, patience_for(self.router.config)
        return StreamBody(io, length, job, patience, delivered=delivered)

    def part(self, start: int, stop: int, etag: str) -> StreamBody:
        """Open a further part of the file.

        Raises:
            ProtocolError: the file was replaced, so the response has to be cut.
        """
        io, found = self._open(start, stop - start)
        if found["etag"] != etag:
            io.reset("changed", "the file has changed")
            raise ProtocolError("the file changed while it was sent", code="changed")
        return self.body(io, stop - start)


def _at_once() -> None:
    """Stand in for a server that does not know what has reached the client: what was sent counts as delivered."""


class MultipartBody:
    """A ``multipart/byteranges`` body (RFC 9110 section 14.6), whose parts are opened one after the other.

    Attributes:
        boundary: text that separates the parts.
        length: bytes of the whole body.
    """

    def __init__(
        self, download: Download, first: StreamIO, ranges: list[tuple[int, int]], found: dict[str, Any]
    ) -> None:
        self.boundary = uuid.uuid4().hex
        self._download = download
        self._etag = found["etag"]
        self._size = found["size"]
        self._ranges = ranges
        self._next = 0
        self._end = f"\r\n--{self.boundary}--\r\n".encode("ascii")
        self._part = download.body(first, ranges[0][1] - ranges[0][0])
        self._ended = False
        heads = sum(len(self._head(*bounds)) for bounds in ranges)
        self.length = heads + sum(stop - start for start, stop in ranges) + len(self._end)

    def _head(self, start: int, stop: int) -> bytes:
        return (
            f"\r\n--{self.boundary}\r\nContent-Type: {_TYPE}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{self._size}\r\n\r\n"
        ).encode("ascii")

    def __iter__(self) -> MultipartBody:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        if self._next:
            data = next(self._part, b"")
            if data:
                return data
        if self._next == len(self._ranges):
            self._ended = True
            return self._end
        bounds = self._ranges[self._next]
        if self._next:
            self._part = self._download.part(*bounds, self._etag)
        self._next += 1
        return self._head(*bounds)

    def close(self) -> None:
        """Close the current part; the server calls this in any case."""
        self._part.close()
