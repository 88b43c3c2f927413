"""Flows of single files and listings in a sandbox."""

from __future__ import annotations

import re

from prouter.client.core.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RouterError,
    Unauthorized,
)
from prouter.client.core.flow import Body, Flow, Lost, Request, Response, now, read, sleep
from prouter.client.core.models import Entry
from prouter.client.core.paths import encoded, joined, query
from prouter.client.core.retries import Attempts, Context, call, call_json, opened

__all__ = ["Download", "delete", "file_url", "head", "listing", "make_directory", "read_file", "walk", "write_file"]

_BYTES = {"Content-Type": "application/octet-stream"}
_RESTARTS = 5
"""How often a download begins anew because the file changed meanwhile."""


def file_url(job: str, path: str) -> str:
    """Return the URL path of a file of a job."""
    return f"{job}/file/{encoded(path)}"


def listing(context: Context, job: str, path: str) -> Flow[list[Entry]]:
    """Return the entries of a directory, sorted by name.

    Raises:
        NotFound: there is none.
        RouterError: the path is a file's (``not_a_directory``).
    """
    head_ = yield from head(context, job, path)
    if "etag" in head_.headers:
        raise RouterError(f"'{path}' is a file, not a directory", status=409, code="not_a_directory")
    return (yield from _entries(context, job, path))


def _entries(context: Context, job: str, path: str) -> Flow[list[Entry]]:
    answer = yield from call_json(context, Request("GET", file_url(job, path)))
    base = "" if path in ("", ".") else path
    return [Entry.of({**one, "path": joined(base, one["name"])}) for one in answer.get("entries", [])]


def walk(context: Context, job: str, path: str) -> Flow[list[Entry]]:
    """Return all entries below a directory, parents first. Links are not followed."""
    found = yield from listing(context, job, path)
    waiting = [entry.path for entry in found if entry.type == "dir"]
    while waiting:
        try:
            entries = yield from _entries(context, job, waiting.pop())
        except NotFound:
            continue  # The job removed it meanwhile.
        found += entries
        waiting += [entry.path for entry in entries if entry.type == "dir"]
    return found


def head(context: Context, job: str, path: str) -> Flow[Response]:
    """Return the headers of a file, or of a directory, which has no ETag."""
    url = file_url(job, path)
    try:
        return (yield from call(context, Request("HEAD", url)))
    except (Unauthorized, Forbidden, NotFound) as error:
        yield from call(context, Request("GET", url, {"Range": "bytes=0-0"}))  # what is refused is told in a body only
        raise error


class Download:
    """One file that is received, piece by piece, over losses.

    Attributes:
        etag: of the file that is being received.
        size: its bytes, or None.
        position: of the next byte.
        mode: its permission bits, None if the router did not tell.
    """

    def __init__(self, job: str, path: str, offset: int = 0, length: int | None = None) -> None:
        self._url = file_url(job, path)
        self._path = path
        self._first = offset
        self._length = length
        self.etag: str | None = None
        self.size: int | None = None
        self.position = offset
        self.mode: int | None = None
        self._restarts = 0

    def request(self) -> Request:
        """Return the request for the rest."""
        headers = {} if self.etag is None else {"If-Match": self.etag}
        last = "" if self._length is None else str(self._first + self._length - 1)
        if self.position or last:
            headers["Range"] = f"bytes={self.position}-{last}"
        return Request("GET", self._url, headers)

    def begin(self, response: Response) -> bool:
        """Learn which file this is; return whether it comes from its start again, although a part was received.

        Raises:
            RouterError: these are not the bytes that were asked for (``gateway``): going on would mix up the file.
        """
        total, begins = response.headers.get("content-length", ""), 0
        if response.status == 206:
            span, _, total = response.headers.get("content-range", "").partition("/")
            begins = _whole(span.removeprefix("bytes ").partition("-")[0]) or 0
        partial = self._first > 0 or self._length is not None
        anew = begins != self.position or (partial and response.status != 206)
        if anew:
            wrong = f"the answer begins at byte {begins} of '{self._path}' instead of {self.position}"
            error = RouterError(f"{wrong}: a proxy on the way to the router drops the field Range", code="gateway")
            if partial or response.status == 206:
                raise error
            self.restart(error)
        self.etag, self.size = response.headers.get("etag"), _whole(total)
        mode = response.headers.get("x-prouter-mode", "")
        self.mode = int(mode, 8) if re.fullmatch("[0-7]{1,4}", mode) else None
        return anew

    @property
    def complete(self) -> bool:
        """Whether all of it is known to have been received."""
        end = self.size
        if end is not None and self._length is not None:
            end = min(end, self._first + self._length)
        return end is not None and self.position >= end

    def check(self) -> None:
        """Check that all of the file was received, in case something on the way hid that the connection broke.

        Raises:
            Lost: something is missing.
        """
        if self.size is not None and not self.complete:
            raise Lost("the file ended early")

    def restart(self, cause: RouterError) -> None:
        """Begin anew: the file has changed, or cannot be continued.

        Raises:
            RouterError: `cause`, which has come too often.
        """
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise cause
        self.etag = self.size = None
        self.position = self._first


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def read_file(context: Context, job: str, path: str, offset: int, length: int | None) -> Flow[bytes]:
    """Return the bytes of a file, or some of them: none at its end and behind it.

    Raises:
        NotFound: there is none.
        RouterError: it is a directory (``is_directory``).
    """
    if length == 0:
        return b""
    download = Download(job, path, offset, length)
    attempts = Attempts(context, context.retry_for)
    data = bytearray()
    while True:
        try:
            response = yield from opened(context, download.request(), attempts)
            if "etag" not in response.headers:
                raise RouterError(f"'{path}' is a directory: download it, or list it", status=409, code="is_directory")
            if download.begin(response):
                data.clear()
            while piece := (yield from read()):
                data += piece
                download.position += len(piece)
                attempts.progressed()
            download.check()
            return bytes(data)
        except InvalidRequest as error:
            if error.code != "range_not_satisfiable":
                raise
            return bytes(data)
        except PreconditionFailed as error:
            download.restart(error)
            data.clear()
        except Lost as lost:
            if download.complete:
                return bytes(data)
            yield from sleep(attempts.after_loss(lost, (yield from now()), safe=True))


def write_file(
    context: Context, job: str, path: str, body: bytes | Body, *, mode: int | None = None, new: bool = False
) -> Flow[str | None]:
    """Upload a file, whole or not at all; return its ETag.

    Args:
        mode: permission bits; 0644 by default.
        new: whether it must not exist yet.

    Raises:
        PreconditionFailed: `new`, and it exists.
    """
    headers = {**_BYTES, **({"If-None-Match": "*"} if new else {})}
    target = file_url(job, path) + query(mode=None if mode is None else f"{mode & 0o777:o}")
    # A repeated request could not tell its own first attempt's file from another's.
    response = yield from call(context, Request("PUT", target, headers, body), safe=not new)
    return response.headers.get("etag")


def make_directory(context: Context, job: str, path: str) -> Flow[None]:
    """Make a directory, and those above it, unless it is there."""
    yield from call(context, Request("PUT", file_url(job, path) + query(directory=True), _BYTES, b""))


def delete(context: Context, job: str, path: str, *, recursive: bool = False) -> Flow[None]:
    """Delete a file, a link or a directory."""
    yield from call(context, Request("DELETE", file_url(job, path) + query(recursive=recursive)), gone=True)
