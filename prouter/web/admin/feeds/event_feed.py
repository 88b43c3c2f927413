"""Events for all followers of ``/events`` on this worker: one subscription and one ring of formatted events.

A follower is a position in the ring. A follower that falls behind by more than the ring is dropped; it can resume from
the id of its last event. If the broker was away, or if ids skip numbers, the worker has missed events and asks the
broker for them.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event

from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.errors import PRouterError
from prouter.web.admin.feeds import sse
from prouter.web.admin.feeds.event_data import public_event
from prouter.web.admin.requests.disclosure import has_output, reads_logs, without_output

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["EventFeed", "Follower"]

log = logging.getLogger("prouter.web")

RING = 1000
"""Events that a follower may be behind."""
RING_BYTES = 8 << 20
"""Bytes that a follower may be behind: jobs with long arguments make long events."""
_PIECE = 1 << 16
"""Bytes that a follower gets at once, or a single event: the memory of a client that does not read."""
_PAGE = 500
"""Events requested from the broker at once."""
_SWEEP = 5.0
"""Seconds between searches for followers that are stuck."""
_CALL_TIMEOUT = 30.0


class _Entry(NamedTuple):
    """One event, formatted.

    Attributes:
        id: its id.
        data: the whole event.
        public: the event without a job's output; None if it holds none.
        owner: of that job.
    """

    id: int
    data: bytes
    public: bytes | None = None
    owner: str | None = None

    def position(self) -> int:
        """Return the id, by which entries are sorted."""
        return self.id

    def seen_by(self, principal: Principal) -> bytes:
        """Return the event as `principal` may see it."""
        return self.data if self.public is None or reads_logs(principal, self.owner) else self.public


class EventFeed:
    """The ring of events and its followers.

    Args:
        router: the worker's connection to the broker.
        size: number of events in the ring.

    Attributes:
        last: id of the newest event known, None before the first follower.
        floor: events up to this id are not in the ring.
        overrun: events up to this id were in the ring and made place for newer ones.
    """

    def __init__(self, router: RouterClient, size: int = RING) -> None:
        self._router = router
        self._size = size
        self._ring: deque[_Entry] = deque()
        self._bytes = 0
        """Size of the events in the ring."""
        self._changed = Event()
        self._followers: set[Follower] = set()
        self._sweeper: Any = None
        self._catching_up = False
        self._missed = False
        self.last: int | None = None
        self.floor = 0
        self.overrun = 0

    # -- followers ----------------------------------------------------------------------------------------------

    def follow(self, after: int | None, principal: Principal = OPEN_ROUTER) -> Follower:
        """Return a response body with every event from now on, or after the event with the id `after`.

        The broker says where "now" is: this worker may be behind what its client has heard from another one.

        Args:
            principal: who follows.

        Raises:
            PRouterError: the broker does not reply.
        """
        if self.last is None:
            self._begin()
        elif after is None and self._router.ready:
            self._router.catch_up()
        last = self.last or 0
        if after is not None and after > last:
            last = int(self._router.call("events", {"after": after, "limit": 1}, timeout=_CALL_TIMEOUT)["last"])
        follower = Follower(self, last if after is None else min(after, last), principal)
        if after is not None and after > last:
            follower.dropped(last)  # The id is of another router.
        self._followers.add(follower)
        if self._sweeper is None:
            self._sweeper = gevent.spawn(self._sweep)
        return follower

    @property
    def draining(self) -> bool:
        """Whether followers are to end: they connect again, to a worker that serves, and resume."""
        return self._router.draining

    def leave(self, follower: Follower) -> None:
        """Remove a follower that has ended."""
        self._followers.discard(follower)

    def newer(self, position: int, principal: Principal) -> tuple[bytes, int] | None:
        """Return a piece of events after `position` and the position it reaches; None if there are none."""
        ring = self._ring
        if not ring or ring[-1].id <= position:
            return None
        newer = islice(ring, bisect_right(ring, position, key=_Entry.position), None)
        return next(_pieces(newer, principal))

    def wait(self, timeout: float) -> None:
        """Block until there is a new event, for at most `timeout` seconds."""
        self._changed.wait(timeout)

    def replay(self, after: int, principal: Principal) -> list[tuple[bytes, int]]:
        """Return events after `after` that are no longer in the ring: a page of pieces with the position each reaches.

        If the broker no longer has all of them, the page begins with an event ``dropped`` that says so.

        Raises:
            PRouterError: the broker does not reply.
        """
        reply = self._router.call("events", {"after": after, "limit": _PAGE}, timeout=_CALL_TIMEOUT)
        first, events = int(reply["first"]), reply["events"]
        position = max(after, first - 1)
        page = [_entry(event["name"], event["body"]) for event in events]
        if first > after + 1:
            data = sse.event("dropped", {"reason": "expired", "first": first}, position)
            page.insert(0, _Entry(position, data))
        pieces = list(_pieces(page, principal))
        if not events:
            pieces.append((sse.COMMENT, max(position, self.floor)))
        return pieces

    # -- events -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        reply = self._router.call("events", {"after": None, "limit": 1}, timeout=_CALL_TIMEOUT)
        if self.last is None:
            self.last = self.floor = int(reply["last"])
            self._router.subscribe(self._on_event)
            self._router.on_linked = self._on_linked
            self._catch_up_soon()

    def _on_event(self, name: str, body: dict[str, Any]) -> None:
        if self._catching_up:
            self._missed = True
        elif self.last is None or body["id"] == self.last + 1:
            self._append(_entry(name, body))
        elif body["id"] > self.last:
            self._catch_up_soon()

    def _on_linked(self) -> None:
        self._missed = True
        self._catch_up_soon()

    def _append(self, entry: _Entry) -> None:
        self.last = entry.id
        self._ring.append(entry)
        self._bytes += len(entry.data)
        while len(self._ring) > self._size or (self._bytes > RING_BYTES and len(self._ring) > 1):
            oldest = self._ring.popleft()
            self.floor = self.overrun = oldest.id
            self._bytes -= len(oldest.data)
        self._changed.set()
        self._changed = Event()

    def _catch_up_soon(self) -> None:
        if not self._catching_up:
            self._catching_up = True
            gevent.spawn(self._catch_up)

    def _catch_up(self) -> None:
        """Request missed events from the broker until none is missing. Runs in a greenlet."""
        try:
            while True:
                self._missed = False
                reply = self._router.call("events", {"after": self.last, "limit": _PAGE}, timeout=_CALL_TIMEOUT)
                first = int(reply["first"])
                if self.last is None or first > self.last + 1:
                    self._ring.clear()
                    self._bytes = 0
                    self.floor = first - 1
                for event in reply["events"]:
                    self._append(_entry(event["name"], event["body"]))
                if not reply["events"] and not self._missed:
                    self.last = max(self.last or 0, int(reply["last"]))
                    return
        except PRouterError as error:
            log.warning("event=events_not_caught_up last=%s code=%s", self.last, error.code)
        except Exception:
            log.exception("event=events_crashed last=%s", self.last)
        finally:
            self._catching_up = False

    def _sweep(self) -> None:
        """Drop followers that are stuck and look for missed events, while there are followers."""
        quiet = 0.0
        while self._followers:
            gevent.sleep(_SWEEP)
            for follower in list(self._followers):
                follower.drop_if_stuck()
            if self.draining:
                self._changed.set()
                self._changed = Event()
            quiet += _SWEEP
            if quiet >= sse.HEARTBEAT and self._router.ready:
                quiet = 0.0
                self._catch_up_soon()
        self._sweeper = None


class Follower:
    """A response body: events as they happen, and comments while none does.

    Attributes:
        position: id of the last event that was returned.
    """

    def __init__(self, feed: EventFeed, position: int, principal: Principal) -> None:
        self._feed = feed
        self._principal = principal
        self.position = position
        self._past: deque[tuple[bytes, int]] = deque()
        """Rest of a page from the broker."""
        self._live = False
        self._begun = False
        self._ended = False
        self._taken = 0
        """Number of pieces taken, now and at the last sweep."""
        self._swept = 0
        self._greenlet: Any = None

    def dropped(self, last: int) -> None:
        """Begin by saying that events up to the id `last` may be missing."""
        self._past.append((sse.event("dropped", {"reason": "expired", "first": last + 1}, last), last))

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> bytes:
        self._taken += 1
        self._greenlet = None
        data = self._next()
        self._greenlet = gevent.getcurrent()
        return data

    def _next(self) -> bytes:
        if not self._begun:
            self._begun = True
            return sse.RETRY
        if self._ended:
            raise StopIteration
        feed = self._feed
        if self._past or self.position < feed.floor:
            return self._behind()
        self._live = True
        fresh = feed.newer(self.position, self._principal)
        if fresh is None:
            if feed.draining:
                raise StopIteration
            feed.wait(sse.HEARTBEAT)
            if self.position < feed.floor:
                return self._behind()
            fresh = feed.newer(self.position, self._principal)
        if fresh is None:
            return sse.COMMENT
        data, self.position = fresh
        return data

    def _behind(self) -> bytes:
        """Handle that the ring does not reach back to this follower: drop it if it is slow, replay if it is new."""
        if self._live and self.position < self._feed.overrun:
            self._ended = True
            return sse.event("dropped", {"reason": "slow", "after": self.position}, self.position)
        try:
            if not self._past:
                self._past.extend(self._feed.replay(self.position, self._principal))
        except PRouterError as error:
            self._ended = True
            return sse.event("error", {"code": error.code, "detail": error.detail})
        data, self.position = self._past.popleft()
        return data

    def drop_if_stuck(self) -> None:
        """End the request if the ring has passed this follower and its client has read nothing since the last look."""
        stuck, self._swept = self._taken == self._swept, self._taken
        if stuck and self.position < self._feed.overrun and isinstance(self._greenlet, gevent.Greenlet):
            log.info("event=follower_dropped after=%d", self.position)
            self._greenlet.kill(block=False)

    def close(self) -> None:
        """End the body; the server calls this in any case."""
        self._feed.leave(self)


def _pieces(events: Iterable[_Entry], principal: Principal) -> Iterator[tuple[bytes, int]]:
    """Yield events joined into pieces as `principal` may see them, with the id of the last event in each."""
    parts: list[bytes] = []
    size = position = 0
    for entry in events:
        data = entry.seen_by(principal)
        if parts and size + len(data) > _PIECE:
            yield b"".join(parts), position
            parts, size = [], 0
        parts.append(data)
        size += len(data)
        position = entry.id
    if parts:
        yield b"".join(parts), position


def _entry(name: str, body: dict[str, Any]) -> _Entry:
    event = public_event(body)
    job = event.get("job")
    data = sse.event(name, event, body["id"])
    if not isinstance(job, dict) or not has_output(job):
        return _Entry(int(body["id"]), data)
    public = sse.event(name, {**event, "job": without_output(job)}, body["id"])
    return _Entry(int(body["id"]), data, public, job.get("owner"))
