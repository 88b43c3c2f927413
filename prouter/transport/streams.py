"""Streams with all peers behind a broker's switch, and their handlers."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from itertools import count
from typing import Any, Protocol

from prouter.fabric.frames import Frame
from prouter.fabric.mux import Closed, Finished, Mux, Opened, Received, ResetReceived, StreamEvent, Writable
from prouter.fabric.stream import Stream
from prouter.fabric.windows import Bulk
from prouter.transport.outbox import Outbox

__all__ = ["StreamHandler", "Streams"]

log = logging.getLogger("prouter.transport")

_MAX_FLOORS = 4096
"""Peers that were given up and are remembered, in case they come back all the same."""
_STRAYS = 20_000
"""Strays per second that one peer may cause (`prouter.fabric.strays`): ended streams leave some."""
_STRAYS_TIME = 0.25
"""Seconds for which so many are allowed, at least: ticks may follow each other closely."""
_STRAYS_AT_ONCE = 10_000
"""Strays after which a peer is not given time until the next tick."""
_STRAYS_OF_STREAM = 4
"""Strays that each stream may cause besides: all streams resume at once when a path is back."""


class StreamHandler(Protocol):
    """What drives one end of a stream; called on the event loop, must not block.

    Attributes:
        takes_views: whether `on_data` accepts memoryviews, which large pieces are; if not, they are copied into bytes.
    """

    takes_views: bool

    def on_data(self, data: bytes) -> None:
        """Take bytes that arrived; call `Stream.consume` when they are used."""

    def on_finish(self) -> None:
        """Note that the other end writes nothing more."""

    def on_writable(self) -> None:
        """Go on with a write that was cut short."""

    def on_reset(self, code: str, text: str) -> None:
        """Note that the stream ended early, and why; nothing follows."""

    def on_closed(self) -> None:
        """Note that everything written was consumed and everything read; nothing follows."""


class Streams:
    """The streams of one process, with every peer behind the switch. A peer is known by its route.

    Args:
        outbox: takes the frames to send.
        accepts: whether peers may open streams here.
        resume_timeout: seconds that streams wait for a lost path.
        process: name of this process for the peers, see `Mux`.
        on_stream: called with route, stream and target when a peer opens a stream; sets `Stream.handler` or resets it.

    Attributes:
        muxes: the streams with each peer, by route.
        bulk: the fast streams of this process.
        floods: routes of peers that flood this end with useless frames. Their messages are not even decoded until the
            route comes up again, for such a peer loses its path.
        on_strays: called with the route of such a peer, and how many useless frames came.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        accepts: bool,
        resume_timeout: float,
        process: str,
        on_stream: Callable[[bytes, Stream, dict[str, Any]], None],
    ) -> None:
        self.muxes: dict[bytes, Mux] = {}
        self.bulk = Bulk()
        self.floods: set[bytes] = set()
        self.on_strays: Callable[[bytes, int], None] | None = None
        self._outbox = outbox
        self._accepts = accepts
        self._resume_timeout = resume_timeout
        self._process = process
        self._on_stream = on_stream
        # One sequence for all peers: a peer that was given up and is back never sees an id for the second time.
        self._sids = count(1)
        self._floors: OrderedDict[bytes, int] = OrderedDict()
        """The highest stream id of each peer that was given up: it may open those streams again over a new path."""
        self._ticked = 0.0

    # -- routes ---------------------------------------------------------------------------------------------------

    def mux(self, route: bytes) -> Mux:
        """Return the streams with the peer behind `route`; made if there are none."""
        mux = self.muxes.get(route)
        if mux is None:
            mux = Mux(
                self._outbox.add,
                on_late_output=self._outbox.add_late,
                accepts=self._accepts,
                resume_timeout=self._resume_timeout,
                sids=self._sids,
                process=self._process,
                floor=self._floors.pop(route, 0),
                bulk=self.bulk,
            )
            mux.tag = route
            self.muxes[route] = mux
        return mux

    def route_up(self, route: bytes, process: str) -> None:
        """Resume the streams with a peer that is reachable (again)."""
        self.floods.discard(route)
        self.mux(route).path_up(process)

    def route_down(self, route: bytes, now: float) -> None:
        """Let the streams with a peer wait, for it is away."""
        mux = self.muxes.get(route)
        if mux is not None:
            mux.path_down(now)

    def route_gone(self, route: bytes, code: str, text: str) -> None:
        """Reset the streams with a peer that will not come back."""
        self.floods.discard(route)
        mux = self.muxes.pop(route, None)
        if mux is not None:
            if mux.highest:
                self._floors[route] = mux.highest
                if len(self._floors) > _MAX_FLOORS:
                    self._floors.popitem(last=False)
            self._dispatch(route, mux.peer_gone(code, text))

    def keep_routes(self, present: Collection[bytes], code: str, text: str) -> None:
        """Reset the streams with all peers but those behind these routes."""
        for route in [route for route in self.muxes if route not in present]:
            self.route_gone(route, code, text)

    def path_down(self, now: float) -> None:
        """Let all streams wait: the path to the switch itself is gone."""
        for mux in self.muxes.values():
            mux.path_down(now)

    # -- frames ---------------------------------------------------------------------------------------------------

    def receive(self, route: bytes, mux: Mux, frames: Iterable[Frame]) -> None:
        """Process frames of the peer behind `route`, whose mux is `mux`."""
        known = mux.malformed
        self._dispatch(route, mux.receive(frames))
        if mux.strays > _STRAYS_AT_ONCE:
            self._look_at_strays(route, mux, _STRAYS_AT_ONCE)
        # Once for each peer: a peer that sends nonsense sends more of it.
        if mux.malformed != known == 0:
            log.warning("event=malformed_stream_frame peer=%.64r", route)

    def tick(self, now: float) -> None:
        """Let muxes send late acknowledgements and give streams up; look for peers that flood."""
        passed, self._ticked = now - self._ticked, now
        for route, mux in list(self.muxes.items()):
            self._dispatch(route, mux.tick(now))
            if mux.strays:
                self._look_at_strays(route, mux, _STRAYS * max(passed, _STRAYS_TIME))
                mux.strays = 0

    def _look_at_strays(self, route: bytes, mux: Mux, most: float) -> None:
        """Report a peer that caused more than `most` strays, and some for each stream."""
        if mux.strays > most + _STRAYS_OF_STREAM * len(mux.streams):
            strays, mux.strays = mux.strays, 0
            if self.on_strays is not None:
                self.floods.add(route)
                self.on_strays(route, strays)

    # -- events ---------------------------------------------------------------------------------------------------

    def _dispatch(self, route: bytes, events: list[StreamEvent]) -> None:
        for event in events:
            try:
                self._handle(route, event)
            except Exception:
                # The handler's edge: a fault in one stream's handler must not cost the others their events.
                log.exception("event=stream_failed stream=%d route=%.64r", event.stream.sid, route)
                event.stream.reset("internal", "the stream's handler failed")

    def _handle(self, route: bytes, event: StreamEvent) -> None:
        stream = event.stream
        # By type() and not isinstance(), by frequency: this runs once per event.
        kind = type(event)
        handler: StreamHandler | None = stream.handler
        if kind is Opened:
            self._on_stream(route, stream, event.target)  # type: ignore[union-attr]
        elif handler is None:
            if kind is Received:
                stream.reset("not_wanted", "nobody reads this stream")
        elif kind is Received:
            data: bytes = event.data  # type: ignore[union-attr]
            handler.on_data(data if type(data) is bytes or handler.takes_views else bytes(data))
        elif kind is Writable:
            handler.on_writable()
        elif kind is Finished:
            handler.on_finish()
        elif kind is ResetReceived:
            # A stream and its handler hold each other; nothing follows, so neither has to wait for the collector.
            stream.handler = None
            handler.on_reset(event.code, event.text)  # type: ignore[union-attr]
        elif kind is Closed:
            stream.handler = None
            handler.on_closed()
