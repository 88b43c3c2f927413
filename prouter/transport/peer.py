"""A process's side of its conversation with a broker: session, calls, events and streams, over one path at a time.

A `Peer` outlives its paths. It keeps calls without a reply, streams and remembered replies, and is attached to a path
(a function that sends, and a session) as often as one is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

import gevent
from gevent.event import AsyncResult

from prouter.errors import AgentUnavailable, ProtocolError
from prouter.fabric.calls import Request, Result, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, decode
from prouter.fabric.mux import RESUME_TIMEOUT, Mux
from prouter.fabric.session import Greeted, Lost, Refused, Session, SessionEvent, SessionState, Welcomed
from prouter.fabric.stream import Stream
from prouter.transport.calls import Calls
from prouter.transport.outbox import Outbox, Send
from prouter.transport.runtime import GeventRuntime, Runtime
from prouter.transport.streams import Streams

__all__ = ["Peer", "PeerDelegate"]

log = logging.getLogger("prouter.transport")

_BULK_TICK = 0.25
"""Seconds after which a stream that stands still no longer counts as fast: longer than most round trips take."""


class PeerDelegate(Protocol):
    """What a peer reports to. All but `on_request` are called on the event loop and must not block."""

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Listening side: the other end sent HELLO; answer with `Peer.welcome` or `Peer.refuse`."""

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Dialling side: the other end sent WELCOME. Calls without a reply have been resent."""

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        """Dialling side: the other end sent REFUSE; the peer is already detached."""

    def on_lost(self, peer: Peer, reason: str) -> None:
        """The path is lost; the peer is already detached."""

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """The other end sent an event."""

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Carry out a call, in a greenlet of its own; raise `PRouterError` to fail it."""

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """The peer behind `route` opened a stream: set `Stream.handler`, or reset it."""


class Peer:
    """One conversation with a broker.

    Args:
        delegate: is told what happens.
        accepts_streams: whether peers behind the switch may open streams here (agents do).
        resume_timeout: seconds that streams wait for a lost path.
        process: name of this process, which the peers' frames are meant for; frames meant for a process that was here
            before are dropped.
        runtime: clock and event loop; gevent's by default.

    Attributes:
        session: the session over the present path, None without one.
        calls: calls in both directions.
        streams: streams with all peers behind the switch.
        bulk: the fast streams of this process.
    """

    def __init__(
        self,
        delegate: PeerDelegate,
        *,
        accepts_streams: bool = False,
        resume_timeout: float = RESUME_TIMEOUT,
        process: str = "",
        runtime: Runtime | None = None,
    ) -> None:
        self.session: Session | None = None
        self._delegate = delegate
        self._runtime: Runtime = runtime or GeventRuntime()
        self._outbox = Outbox(self._runtime, self._watch_bulk)
        self.calls = Calls(
            self._outbox, self._runtime, lambda: self.ready, lambda request: delegate.on_request(self, request)
        )
        self.streams = Streams(
            self._outbox,
            accepts=accepts_streams,
            resume_timeout=resume_timeout,
            process=process,
            on_stream=lambda route, stream, target: delegate.on_stream(self, route, stream, target),
        )
        self.bulk = self.streams.bulk
        self._watching = False
        """Whether a timer looks at the fast streams again."""
        self._malformed = 0

    @property
    def muxes(self) -> dict[bytes, Mux]:
        """The streams with each peer behind the switch, by route."""
        return self.streams.muxes

    # -- the path -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the session is established."""
        return self.session is not None and self.session.state is SessionState.READY

    def attach(self, send: Send, session: Session) -> None:
        """Talk over a new path."""
        self.detach()
        self._outbox.attach(send)
        self.session = session
        self._outbox.say(*session.start())

    def detach(self) -> None:
        """Let calls and streams wait for the next path; the present one is gone. Idempotent."""
        self._outbox.detach()
        self.session = None
        self.streams.path_down(self._runtime.now())

    def lose(self, reason: str) -> None:
        """Detach from a path that broke, and tell the delegate."""
        self.detach()
        self.calls.path_lost()
        self._delegate.on_lost(self, reason)

    def welcome(self, body: dict[str, Any]) -> None:
        """Listening side: accept the other end, which has just sent HELLO."""
        if self.session is not None:
            self._outbox.say(self.session.welcome(body))
            self.calls.path_up()
            self.flush()

    def refuse(self, code: str, text: str) -> None:
        """Listening side: refuse the other end, which has just sent HELLO."""
        if self.session is not None:
            self._outbox.say(self.session.refuse(code, text))
            self.flush()

    def goodbye(self, reason: str) -> None:
        """Close the session on purpose; the path is detached afterwards."""
        if self.session is not None and self.ready:
            self._outbox.say(self.session.bye(reason))
            self.flush()
        self.detach()

    # -- calls and events -----------------------------------------------------------------------------------------

    def call(
        self, op: str, args: dict[str, Any], *, call_id: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Make a call and return the value of its reply, across lost paths. Blocks the calling greenlet.

        Raises:
            PRouterError: the error of the reply.
            AgentUnavailable: no reply came within `timeout` seconds.
            TooLarge: the other end would not accept so much.
        """
        result: AsyncResult[Result] = AsyncResult()
        call_id = self.ask(op, args, result.set, call_id=call_id)
        try:
            reply = result.get(timeout=timeout)
        except gevent.Timeout:
            raise AgentUnavailable(f"no answer to {op} within {timeout:g} s", retry_after=1) from None
        finally:
            self.forget(call_id)
        assert reply is not None
        if reply.error is not None:
            raise reply.error
        return reply.value

    def ask(self, op: str, args: dict[str, Any], done: Callable[[Result], None], *, call_id: str | None = None) -> str:
        """Make a call without waiting; return its id. `done` gets the reply, across lost paths, unless it is forgotten.

        Raises:
            TooLarge: the other end would not accept so much.
        """
        return self.calls.ask(op, args, done, call_id)

    def forget(self, call_id: str) -> None:
        """Give a call up. Idempotent."""
        self.calls.forget(call_id)

    def notify(self, name: str, body: dict[str, Any]) -> None:
        """Send an event; it is lost without a path, or when it is too large for any peer."""
        if self.ready:
            try:
                frame = event_frame(name, body)
            except ProtocolError as error:
                log.error("event=event_not_sent name=%s error=%r", name, error.detail)
            else:
                self._outbox.say(frame)

    def ping(self) -> None:
        """Send a heartbeat now. If the connection is already closed, the attempt to send shows it."""
        if self.session is not None and self.ready:
            self._outbox.say(self.session.ping(self._runtime.now()))
            self.flush()

    # -- streams --------------------------------------------------------------------------------------------------

    def mux(self, route: bytes) -> Mux:
        """Return the streams with the peer behind `route`."""
        return self.streams.mux(route)

    def route_up(self, route: bytes, process: str = "") -> None:
        """Resume the streams with the peer behind `route`, which is reachable (again).

        Args:
            process: name of the process at the other end, if it tells one.
        """
        self.streams.route_up(route, process)

    def route_down(self, route: bytes) -> None:
        """Let the streams with the peer behind `route` wait, for it is away."""
        self.streams.route_down(route, self._runtime.now())

    def route_gone(self, route: bytes, code: str, text: str) -> None:
        """Reset the streams with the peer behind `route`, which will not come back."""
        self.streams.route_gone(route, code, text)

    def keep_routes(self, present: Collection[bytes], code: str, text: str) -> None:
        """Reset the streams with all peers but those behind these routes."""
        self.streams.keep_routes(present, code, text)

    # -- input ----------------------------------------------------------------------------------------------------

    def receive(self, parts: list[bytes]) -> None:
        """Process one message, ``[route, block, bulk…]``. A malformed one is counted and dropped."""
        try:
            route = parts[0]
            streams = self.streams
            if route in streams.floods:
                return
            frames = decode(parts[1:])
            if not route:
                for frame in frames:
                    self._receive_control(frame)
                return
            mux = streams.muxes.get(route)
            if mux is not None:
                # What a peer sends through the broker shows that the broker is alive.
                if self.session is not None:
                    self.session.heard(self._runtime.now())
                streams.receive(route, mux, frames)
        except ProtocolError as error:
            self._malformed += 1
            if self._malformed == 1:
                log.warning("event=malformed_frame error=%s", error.detail)

    def tick(self, now: float) -> None:
        """Do what is due; call it several times per heartbeat interval, with the runtime's time."""
        self.streams.tick(now)
        if self.session is not None:
            frames, event = self.session.tick(now)
            self._outbox.say(*frames)
            if event is not None:
                self._session_event(event)
        self.calls.tick(now)

    def excuse(self, seconds: float, now: float) -> None:
        """Take `seconds` off the other end's silence, in which this process did not listen."""
        if self.session is not None:
            self.session.excuse(seconds, now)

    def flush(self) -> None:
        """Send everything that is queued now, instead of at the end of the event loop iteration."""
        self._outbox.flush()

    def _receive_control(self, frame: Frame) -> None:
        session = self.session
        if session is None:
            return
        kind = frame.type
        if kind < CALL:
            answers, event = session.receive(frame, self._runtime.now())
            self._outbox.say(*answers)
            if event is not None:
                self._session_event(event)
            return
        # Before WELCOME nothing but the session counts: the other end is not known yet.
        if session.state is not SessionState.READY:
            return
        session.heard(self._runtime.now())
        if kind == REPLY:
            self.calls.receive_reply(frame)
        elif kind == EVENT:
            name, body = read_event(frame)
            self._delegate.on_event(self, name, body)
        elif kind == CALL:
            self.calls.receive_call(frame)
        else:
            raise ProtocolError(f"unexpected frame type {kind}")

    def _session_event(self, event: SessionEvent) -> None:
        if isinstance(event, Welcomed):
            self.calls.path_up()
            self._delegate.on_ready(self, event.body)
        elif isinstance(event, Greeted):
            self._delegate.on_greeted(self, event.body)
        elif isinstance(event, Refused):
            self.detach()
            self._delegate.on_refused(self, event.code, event.text)
        elif isinstance(event, Lost):
            self.lose(event.reason)

    def _watch_bulk(self) -> None:
        """Look at the fast streams regularly while there are any: an idle process has no timer."""
        if not self._watching and self.bulk:
            self._watching = True
            self._runtime.later(_BULK_TICK, self._tick_bulk)

    def _tick_bulk(self) -> None:
        self.bulk.tick()
        self._watching = False
        self._watch_bulk()
