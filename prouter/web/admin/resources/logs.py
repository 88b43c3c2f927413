"""A job's stdout and stderr: read, tailed and followed, as plain text or as server-sent events."""

from __future__ import annotations

import base64
import codecs
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import falcon

from prouter.errors import InvalidRequest, NotFound, PRouterError
from prouter.web.admin.feeds import sse
from prouter.web.admin.feeds.log_tail import LogTail, TailPosition
from prouter.web.admin.requests import query
from prouter.web.admin.requests.context import ApiRequest

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["EventLog", "Logs", "PlainLog", "utf8_runs"]

_NAMES = ("stdout", "stderr")
_EVENT_ID = re.compile(r"(\d{1,18})(\.end)?")
_RUN = re.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
"""Bytes that are no UTF-8, as Python's ``surrogateescape`` shows them, or text."""
_BAD_RUNS = 64
"""Runs of bad bytes in one piece of a log that are told exactly."""
_NEAR = 256
"""Characters between bad bytes that are no run of their own where there are more of these."""
_PATIENCE = 5.0
"""Seconds between looks whether the router drains."""
_ENDING = ("state", "exit_code", "signal", "reason", "error")


class Logs:
    """``JOB_PATH/logs/stdout`` and ``JOB_PATH/logs/stderr``"""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, name: str) -> None:
        """The log from an offset, or its last lines; with follow=1 until the job has ended."""
        if name not in _NAMES:
            raise NotFound(f"there is no log '{name}', only {' and '.join(_NAMES)}")
        start = TailPosition(query.integer(req, "offset"), query.integer(req, "tail"))
        if start.offset is not None and start.tail is not None:
            raise InvalidRequest("Invalid request: query parameters 'offset' and 'tail' exclude each other")
        follow = query.flag(req, "follow")
        as_events = sse.wanted(req)
        if as_events and (resumed := req.get_header("Last-Event-ID")):
            matched = _EVENT_ID.fullmatch(resumed)
            if matched is None:
                raise InvalidRequest("Invalid request: Last-Event-ID must be one of this log's event ids")
            if matched[2]:
                resp.status = 204
                return
            start = TailPosition(int(matched[1]), None)
        tail = LogTail(self._router, connection, job, name, start, follow=follow)
        resp.set_header("X-PRouter-Log-Offset", str(tail.offset))
        resp.set_header("X-Content-Type-Options", "nosniff")
        if as_events:
            sse.start(req, resp, EventLog(tail, lambda: self._router.draining))
            return
        resp.content_type = "text/plain; charset=utf-8"
        sse.flow(req, resp, PlainLog(tail, follow=follow))


class PlainLog:
    """Response body: the log's bytes. A log that cannot be read to its end raises, so that the connection is cut.

    Args:
        follow: the log may be silent for long; an empty piece comes first, upon which the head of the answer leaves.
    """

    def __init__(self, tail: LogTail, *, follow: bool = False) -> None:
        self._tail = tail
        self._head_due = follow

    def __iter__(self) -> PlainLog:
        return self

    def __next__(self) -> bytes:
        if self._head_due:
            self._head_due = False
            return b""
        data = None
        while data is None:
            data = self._tail.read(sse.HEARTBEAT)
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """The server calls this in any case."""
        self._tail.close()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def utf8_runs(data: bytes) -> tuple[list[str | bytes], bytes]:
    """Split bytes into texts, the bytes between them that are no UTF-8, and the beginning of a character at the end.

    Where there are many bad bytes, those close to each other are one run with what is between them, so that binary data
    become no multitude of tiny events.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = decoder.decode(data)
    runs = _RUN.findall(text)
    many = len(runs) > 2 * _BAD_RUNS
    found: list[str | bytearray] = []
    for position, run in enumerate(runs):
        bad = "\udc80" <= run[0] <= "\udcff"
        between = many and position < len(runs) - 1 and len(run) < _NEAR
        last = found[-1] if found else ""
        if isinstance(last, bytearray) and (bad or between):
            last += run.encode("utf-8", "surrogateescape")
        else:
            found.append(bytearray(run.encode("utf-8", "surrogateescape")) if bad else run)
    return [bytes(run) if isinstance(run, bytearray) else run for run in found], decoder.getstate()[0]


class EventLog:
    """Response body: the log as events.

    Each event's id is the position after its bytes. Its data has ``offset``, the position of its first byte, and
    ``text``, or ``base64`` for bytes that are no UTF-8: these alone, unless there are very many. The last event is
    ``end``, which tells how the job stands, or ``error``. While the router drains it ends without one, so that the
    client connects again and resumes elsewhere.
    """

    def __init__(self, tail: LogTail, draining: Callable[[], bool]) -> None:
        self._tail = tail
        self._draining = draining
        self._rest = b""
        self._position = tail.offset
        self._begun = False
        self._ended = False

    def __iter__(self) -> EventLog:
        return self

    def __next__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return sse.RETRY
        if self._ended:
            raise StopIteration
        try:
            data = self._read()
            if data is None:
                return sse.COMMENT
            if data:
                return self._event(data)
            self._ended = True
            return self._end()
        except PRouterError as error:
            self._ended = True
            return sse.event("error", {"code": error.code, "detail": error.detail})

    def _read(self) -> bytes | None:
        """The next bytes, b"" at the end, None after a while of silence."""
        deadline = time.monotonic() + sse.HEARTBEAT
        data = None
        while data is None and time.monotonic() < deadline:
            if self._draining():
                raise StopIteration
            data = self._tail.read(_PATIENCE)
        return data

    def _event(self, data: bytes) -> bytes:
        """The bytes as an event; the beginning of a character is kept for the next one."""
        start = self._tail.offset - len(data)
        if self._rest and start != self._position:
            return self._kept() + self._event(data)
        data = self._rest + data
        first = start - len(self._rest)
        self._position = self._tail.offset
        runs, self._rest = utf8_runs(data)
        events = []
        for content in runs:
            size = len(content) if isinstance(content, bytes) else len(content.encode())
            shown = {"base64": _base64(content)} if isinstance(content, bytes) else {"text": content}
            events.append(self._log_event(first, shown, first + size))
            first += size
        return b"".join(events) or sse.COMMENT

    def _log_event(self, first: int, content: dict[str, Any], after: int) -> bytes:
        return sse.event("log", {"offset": first, **content}, after)

    def _kept(self) -> bytes:
        """An event with what was kept, the beginning of a character whose rest did not come."""
        rest, self._rest = self._rest, b""
        if not rest:
            return b""
        content = {"base64": _base64(rest)}
        return self._log_event(self._position - len(rest), content, self._position)

    def _end(self) -> bytes:
        """What was kept, then the explicit end."""
        offset = self._tail.offset
        kept = self._kept()
        info = self._tail.ending()
        state = {name: info.get(name) for name in _ENDING}
        return kept + sse.event("end", {"offset": offset, **state}, f"{offset}.end")

    def close(self) -> None:
        """The server calls this in any case."""
        self._tail.close()
