"""Streams of the router that continue over every loss: logs by position, events by id."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from prouter.client.core.errors import RouterError, from_code
from prouter.client.core.flow import Flow, Lost, Request, Response, give, now, read, sleep
from prouter.client.core.models import Event
from prouter.client.core.paths import query
from prouter.client.core.retries import Attempts, Context, opened
from prouter.client.core.sse import EventParser, ServerEvent

__all__ = ["OPENED", "EventsFeed", "LogFeed", "follow"]

SILENCE = 40.0
"""Seconds without a byte after which a stream counts as lost: the router sends a comment every 15 s."""
_PASSING = ("agent_timeout", "agent_unavailable", "overloaded", "draining", "broker_away")
"""Codes of errors within a stream after which it may be opened again."""


_MARKER = re.compile(rb"\[prouter: \d+ bytes dropped\]\n")
"""The line that stands for a part of a log that the agent dropped; its own bytes count as the last of these."""


class Feed(Protocol):
    """What is particular to one stream.

    Attributes:
        done: whether it has come to its end.
    """

    done: bool

    def request(self) -> Request:
        """Return the request that continues it."""

    def begin(self, response: Response) -> None:
        """Take the head of an answer."""

    def take(self, event: ServerEvent) -> Iterable[Any]:
        """Return the items that an event brings. Raises `RouterError` if the stream cannot go on."""


OPENED = object()
"""Given once the stream is open, to callers that asked for it."""


def follow(context: Context, feed: Feed, *, announce: bool = False) -> Flow[None]:
    """Give all items of a stream; open it anew whenever it is lost.

    The first answer has to come within `Context.retry_for`. From then on losses are endured for ever.

    Raises:
        RouterError: the router refused it, or the stream cannot go on.
        ConnectionFailed: the router was never reached.
    """
    attempts = Attempts(context, context.retry_for)
    while not feed.done:
        response = yield from opened(context, feed.request(), attempts)
        attempts.endure()
        if response.status == 204:
            return
        feed.begin(response)
        if announce:
            announce = False
            yield from give(OPENED)
        lost = yield from _read(feed, attempts)
        if lost is not None:
            yield from sleep(attempts.after_loss(lost, (yield from now()), safe=True))


def _read(feed: Feed, attempts: Attempts) -> Flow[Lost | None]:
    """Give the items of one answer; return why it ended early, None at the stream's end."""
    parser = EventParser()
    try:
        while data := (yield from read()):
            for event in parser.feed(data):
                if event.name == "error" and event.json().get("code") in _PASSING:
                    return Lost(str(event.json().get("detail")))
                for item in feed.take(event):
                    attempts.progressed()
                    yield from give(item)
                if feed.done:
                    return None
    except Lost as lost:
        return lost
    return Lost("the stream ended")


class LogFeed:
    """A job's stdout or stderr.

    Attributes:
        position: of the next byte; None until that is known.
        ending: the job's state at the end of its log, once that was reached.
        dropped: bytes that the agent dropped before they could be read; a line stands in their place.
    """

    def __init__(
        self,
        path: str,
        stream: str,
        *,
        follow: bool,
        offset: int | None,
        tail: int | None,
        since: datetime | timedelta | None = None,
    ) -> None:
        if stream not in ("stdout", "stderr"):
            raise ValueError(f"a job has the logs stdout and stderr, not {stream!r}")
        if offset is not None and (tail is not None or since is not None):
            raise ValueError("offset excludes tail and since")
        self._path = f"{path}/logs/{stream}"
        self._follow = follow
        self._begin = {"tail": tail, "since": _moment(since)}
        self.position = offset
        self.done = False
        self.ending: dict[str, Any] = {}
        self.dropped = 0

    def request(self) -> Request:
        """Return the request for the log from `position` on."""
        begin = self._begin if self.position is None else {}
        found = query(follow=self._follow, offset=self.position, **begin)
        return Request(
            "GET", self._path + found, {"Accept": "text/event-stream"}, silence=SILENCE if self._follow else None
        )

    def begin(self, response: Response) -> None:
        """Learn the position at which the answer begins."""
        offset = response.headers.get("x-prouter-log-offset", "")
        if self.position is None and offset.isascii() and offset.isdigit():
            self.position = int(offset)

    def take(self, event: ServerEvent) -> Iterable[bytes]:
        """Return the bytes that an event brings."""
        data = event.json()
        if event.name == "log":
            return self._pieces(event, data)
        if event.name == "end":
            self.done = True
            self.ending = data
        elif event.name == "error":
            raise from_code(str(data.get("code")), str(data.get("detail")))
        return []

    def _pieces(self, event: ServerEvent, data: dict[str, Any]) -> Iterator[bytes]:
        content = self._content(data)
        end = _number(event.id, (data.get("offset") or 0) + len(content))
        marker = self._gap(data.get("offset"), content)
        content = content[len(marker) :]
        if marker:
            self.position = end - len(content)
            yield marker
        self.position = end
        if content:
            yield content

    def _gap(self, first: object, content: bytes) -> bytes:
        """Count what the agent dropped before this piece; return the line that says so, with which it begins."""
        if self.position is None or not isinstance(first, int) or first <= self.position:
            return b""
        found = _MARKER.match(content)
        marker = found[0] if found is not None else b""
        self.dropped += first - self.position + len(marker)
        return marker

    def _content(self, data: dict[str, Any]) -> bytes:
        """Return an event's bytes, without those before `position`: they were given before."""
        try:
            content = base64.b64decode(data["base64"]) if "base64" in data else str(data["text"]).encode()
        except (KeyError, binascii.Error) as error:
            raise RouterError(f"the router sent a piece of a log that has no bytes: {error}") from error
        first = data.get("offset")
        if self.position is None or not isinstance(first, int) or first >= self.position:
            return content
        return content[self.position - first :]


class EventsFeed:
    """Changes of jobs and agents.

    Attributes:
        last: id of the last event that was given or is known.
    """

    def __init__(self, after: int | None) -> None:
        self.last = after
        self.done = False

    def request(self) -> Request:
        """Return the request for the events after `last`."""
        resumed = {"Last-Event-ID": str(self.last)} if self.last is not None else {}
        return Request("GET", "/events", {"Accept": "text/event-stream", **resumed}, silence=SILENCE)

    def begin(self, response: Response) -> None:
        """Learn after which event the answer begins."""
        last = response.headers.get("x-prouter-last-event-id", "")
        if self.last is None and last.isascii() and last.isdigit():
            self.last = int(last)

    def take(self, event: ServerEvent) -> Iterable[Event]:
        """Return the event, unless it was given before."""
        data = event.json()
        if event.name == "error":
            raise from_code(str(data.get("code")), str(data.get("detail")))
        number = _number(event.id, None)
        if event.name == "dropped":
            if data.get("reason") == "slow":
                return []  # The stream ends, and the next one brings what this one left out.
            self.last = number if number is not None else self.last
            return [Event(type="dropped", id=number, data=data, raw=data)]
        if number is None or (self.last is not None and number <= self.last):
            return []
        self.last = number
        return [Event(type=event.name, id=number, data=data, raw=data)]


def _moment(since: datetime | timedelta | None) -> str | None:
    """Return a time as the API takes it; an age is counted by the router's clock."""
    if isinstance(since, datetime):
        return since.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    return f"{max(0.0, since.total_seconds()):.3f}s" if since is not None else None


def _number(text: str | None, default: Any) -> Any:
    return int(text) if text is not None and text.isascii() and text.isdigit() else default
