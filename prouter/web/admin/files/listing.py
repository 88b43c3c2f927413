"""A directory's listing as one JSON document, made while its entries arrive."""

from __future__ import annotations

import json

from prouter.transport.stream_io import StreamIO
from prouter.web.admin.files.streams import StreamBody

__all__ = ["ListingBody"]


class ListingBody:
    """Response body ``{"path": …, "entries": […]}`` from a stream of newline-delimited JSON.

    Args:
        io: the stream, its preface read.
        path: the directory, relative to the sandbox; bytes that are not UTF-8 become surrogates (PEP 383).
        job: uid of the job.
        patience: seconds the agent may pause; None for no limit.
    """

    def __init__(self, io: StreamIO, path: bytes, job: str, patience: float | None) -> None:
        self._lines = StreamBody(io, None, job, patience)
        shown = json.dumps(path.decode("utf-8", "surrogateescape"))
        self._head = f'{{"path":{shown},"entries":['.encode("ascii")
        self._newline = False
        self._ended = False

    def __iter__(self) -> ListingBody:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        head, self._head = self._head, b""
        for data in self._lines:
            piece = self._joined(data)
            if piece:
                return head + piece
        self._ended = True
        return head + b"]}"

    def _joined(self, data: bytes) -> bytes:
        """Return the lines joined by commas; a newline at the end waits for the next line."""
        before = b"," if self._newline and data else b""
        self._newline = data.endswith(b"\n")
        if self._newline:
            data = data[:-1]
        return before + data.replace(b"\n", b",")

    def close(self) -> None:
        """Reset the stream unless it was read to its end; the server calls this in any case."""
        self._lines.close()
