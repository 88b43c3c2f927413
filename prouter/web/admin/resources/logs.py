"""A job's stdout and stderr: read, tail and follow, as plain text or as server-sent events."""

from __future__ import annotations

import base64
import codecs
import re
import time
from collections.abc import Callable, Iterable, Iterator
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
"""Runs of bytes that are no UTF-8, as Python's ``surrogateescape`` shows them, or of text."""
_BAD_RUNS = 64
"""Runs of bad bytes in one piece of a log that are reported exactly."""
_NEAR = 256
"""Characters of text between bad bytes that are joined with these where there are more runs."""
_EVENT = 4096
"""Bytes of the log in one event, at most: even over connections that break soon, followers get on."""
_PATIENCE = 5.0
"""Seconds between looks at whether the router drains."""
_ENDING = ("state", "exit_code", "signal", "reason", "error")


class Logs:
    """The resources ``JOB_PATH/logs/stdout`` and ``JOB_PATH/logs/stderr``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response, connection: str, job: str, name: str) -> None:
        """Send the log from an offset, its last lines, or what came since a time; ``follow=1`` to the job's end."""
        if name not in _NAMES:
            raise NotFound(f"there is no log '{name}', only {' and '.join(_NAMES)}")
        start = TailPosition(query.integer(req, "offset"), query.integer(req, "tail"), query.moment(req, "since"))
        if start.offset is not None and (start.tail is not None or start.since is not None):
            other = "tail" if start.tail is not None else "since"
            raise InvalidRequest(
                f"Invalid request: query parameters 'offset' and '{other}' exclude each other: send one of them"
            )
        follow = query.flag(req, "follow")
        as_events = sse.wanted(req)
        if as_events and (resumed := req.get_header("Last-Event-ID")):
            matched = _EVENT_ID.fullmatch(resumed)
            if matched is None:
                raise InvalidRequest("Invalid request: Last-Event-ID must be one of this log's event ids")
            if matched[2]:
                resp.status = 204
                return
            start = TailPosition(int(matched[1]))
        tail = LogTail(self._router, connection, job, name, start, follow=follow)
        resp.set_header("X-PRouter-Log-Offset", str(tail.offset))
        resp.set_header("X-Content-Type-Options", "nosniff")
        if as_events:
            sse.start(req, resp, EventLog(tail, lambda: self._router.draining))
            return
        resp.content_type = "text/plain; charset=utf-8"
        sse.flow(req, resp, PlainLog(tail, follow=follow))


class PlainLog:
    """Response body with the log's bytes. It raises if the log cannot be read to its end, so that the response is cut.

    Args:
        tail: reader of the log.
        follow: whether the log may be silent for long. Then an empty piece comes first, which sends the response head.
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
        """Close the reader; the server calls this in any case."""
        self._tail.close()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def utf8_runs(data: bytes) -> tuple[list[str | bytes], bytes]:
    """Split bytes into runs of text and of bytes that are no UTF-8, and the beginning of a character at the end.

    If there are many bad bytes, those close to each other become one run with the text between them, so that binary
    data does not become very many tiny events. If one in sixteen is bad, all are one run: looking for the others would
    cost more than sending them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = decoder.decode(data)
    if len(data) - len(text.encode("utf-8", "ignore")) > max(_BAD_RUNS, len(data) // 16):
        whole = text.encode("utf-8", "surrogateescape")
        return ([whole] if whole else []), decoder.getstate()[0]
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


def _pieces(runs: Iterable[str | bytes]) -> Iterator[str | bytes]:
    """Return runs in pieces of at most `_EVENT` bytes: a client whose connection breaks resumes after an event."""
    for run in runs:
        step = _EVENT if isinstance(run, bytes) or run.isascii() else _EVENT // 4
        for at in range(0, len(run), step):
            yield run[at : at + step]


class EventLog:
    """Response body with the log as events.

    Each event's id is the position after its bytes. Its data has ``offset``, the position of its first byte, and
    ``text``, or ``base64`` for bytes that are no UTF-8: only these, unless there are very many. The last event is
    ``end``, with the job's info, or ``error``. If the router drains, the body ends without either, so that the client
    connects again and resumes elsewhere.
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
        """Return the next bytes, b"" at the end, None after some seconds of silence."""
        deadline = time.monotonic() + sse.HEARTBEAT
        data = None
        while data is None and time.monotonic() < deadline:
            if self._draining():
                raise StopIteration
            data = self._tail.read(_PATIENCE)
        return data

    def _event(self, data: bytes) -> bytes:
        """Return bytes as events; the beginning of a character is kept for the next one."""
        start = self._tail.offset - len(data)
        if self._rest and start != self._position:
            return self._kept() + self._event(data)
        data = self._rest + data
        first = start - len(self._rest)
        self._position = self._tail.offset
        runs, self._rest = utf8_runs(data)
        events = []
        for content in _pieces(runs):
            size = len(content) if isinstance(content, bytes) else len(content.encode())
            shown = {"base64": _base64(content)} if isinstance(content, bytes) else {"text": content}
            events.append(self._log_event(first, shown, first + size))
            first += size
        return b"".join(events) or sse.COMMENT

    def _log_event(self, first: int, content: dict[str, Any], after: int) -> bytes:
        return sse.event("log", {"offset": first, **content}, after)

    def _kept(self) -> bytes:
        """Return an event with the kept beginning of a character whose rest did not arrive."""
        rest, self._rest = self._rest, b""
        if not rest:
            return b""
        content = {"base64": _base64(rest)}
        return self._log_event(self._position - len(rest), content, self._position)

    def _end(self) -> bytes:
        """Return what was kept, then the event ``end``."""
        offset = self._tail.offset
        kept = self._kept()
        info = self._tail.ending()
        state = {name: info.get(name) for name in _ENDING}
        return kept + sse.event("end", {"offset": offset, **state}, f"{offset}.end")

    def close(self) -> None:
        """Close the reader; the server calls this in any case."""
        self._tail.close()
