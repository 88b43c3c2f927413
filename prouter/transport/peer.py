"""A peer behind a broker's switch: session, calls, events and streams over one replaceable path.

`Peer` holds what outlives a path (calls waiting for an answer, streams, remembered replies) and is attached to a path
(a way to send, and a session) as often as needed. Frames produced by the loop's callbacks are collected per destination
and sent once per loop iteration, so many small frames share a message.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any, Protocol

import gevent
from gevent import get_hub
from gevent.event import AsyncResult

from prouter.errors import AgentUnavailable, ProtocolError, PRouterError
from prouter.fabric.calls import Caller, Request, Responder, Result, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, batches, decode, encode
from prouter.fabric.mux import (
    RESUME_TIMEOUT,
    Closed,
    Finished,
    Mux,
    Opened,
    Received,
    ResetReceived,
    StreamEvent,
    Writable,
)
from prouter.fabric.retries import Retries
from prouter.fabric.session import Greeted, Lost, Refused, Session, SessionEvent, SessionState, Welcomed
from prouter.fabric.stream import Stream
from prouter.fabric.windows import Bulk

__all__ = ["GeventRuntime", "Peer", "PeerDelegate", "Runtime", "StreamHandler"]

log = logging.getLogger("prouter.transport")

_BULK_TICK = 0.25
"""Seconds after which a stream that stands still counts as fast no more: longer than most round trips take."""
_MAX_FLOORS = 4096
"""Peers that were given up and are remembered in case they come back all the same."""


_STRAYS = 20_000
"""Frames per second that may lead to no stream, or only ask for repetition, from one peer: ended streams have some."""
_STRAYS_TIME = 0.25
"""Seconds for which so many are allowed at once; and some for each stream, which all resume when a path is back."""
_STRAYS_AT_ONCE = 10_000
"""Such frames, beside those for each stream, after which the next look at the clock is not waited for."""
_LATE = 0.003
"""Seconds the acknowledgement of a stream's end waits for company. Alone it would cost three processes a wake-up."""


class Runtime(Protocol):
    """What a peer needs of its surroundings; `GeventRuntime` in processes, a virtual one in simulations."""

    @property
    def now(self) -> Callable[[], float]:
        """Tells the seconds of a monotonic clock."""

    @property
    def soon(self) -> Callable[[Callable[[], None]], Any]:
        """Runs a callback in the next turn of the loop."""

    @property
    def later(self) -> Callable[[float, Callable[[], None]], Any]:
        """Runs a callback in so many seconds."""

    @property
    def spawn(self) -> Callable[..., Any]:
        """Runs a function, with arguments, beside everything else; it may block."""


class GeventRuntime:
    """The gevent loop of this thread."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.monotonic
        self.soon: Callable[[Callable[[], None]], Any] = get_hub().loop.run_callback
        self.spawn: Callable[..., Any] = gevent.spawn

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run `callback` in so many seconds."""
        timer = get_hub().loop.timer(seconds)

        def run() -> None:
            timer.close()
            callback()

        timer.start(run)


class StreamHandler(Protocol):
    """What drives one end of a stream; called on the loop, must not block.

    Attributes:
        takes_views: whether `on_data` copes with memoryviews, which large pieces are; else they are copied into bytes.
    """

    takes_views: bool

    def on_data(self, data: bytes) -> None:
        """Bytes arrived; tell `Stream.consume` when they are used."""

    def on_finish(self) -> None:
        """The other end writes nothing more."""

    def on_writable(self) -> None:
        """A write that was cut short may go on."""

    def on_reset(self, code: str, text: str) -> None:
        """The stream ended early."""

    def on_closed(self) -> None:
        """Everything written was consumed and everything read: the stream is over."""


class PeerDelegate(Protocol):
    """Whose peer it is. All but `on_request` are called on the loop and must not block."""

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Listening side: the peer said HELLO; answer with `Peer.welcome` or `Peer.refuse`."""

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Dialling side: welcomed. Unanswered calls have been repeated."""

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        """Dialling side: refused."""

    def on_lost(self, peer: Peer, reason: str) -> None:
        """The path is gone; the peer is already detached."""

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """News from the peer."""

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Carry out a call, in a greenlet of its own; raise `PRouterError` to fail it."""

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """The peer behind `route` opened a stream: set `stream.handler`, or reset it."""


class Peer:
    """One conversation with a broker (see the module's docstring).

    Attributes:
        bulk: the fast streams of this process.

    Args:
        delegate: gets what happens.
        accepts_streams: whether peers behind the switch may open streams here (agents do).
        resume_timeout: seconds streams wait for a lost path.
        process: of this end, for peers that are to send nothing to one that was here before.
        runtime: clock and loop; gevent's by default.
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
        self.muxes: dict[bytes, Mux] = {}
        self.session: Session | None = None
        self._delegate = delegate
        self._accepts = accepts_streams
        self._resume_timeout = resume_timeout
        self._process = process
        self._send: Callable[[Sequence[bytes]], bool] | None = None
        self._sids = count(1)
        self._floors: OrderedDict[bytes, int] = OrderedDict()
        """Of peers that were given up: the highest ids of their streams."""
        self.bulk = Bulk()
        self.on_strays: Callable[[bytes, int], None] | None = None
        """Called with the route of a peer that floods this end with frames of no use, and how many came.

        Nothing more is heard of it until `route_up`: it loses its path for that."""
        self._floods: set[bytes] = set()
        """Routes of such peers."""
        self._ticked = 0.0
        self._watching = False
        """Whether `bulk` is looked at again."""
        self._caller = Caller()
        self._retries = Retries()
        self._responder = Responder()
        self._results: dict[str, Callable[[Result], None]] = {}
        self._dirty: list[Mux] = []
        self._control: list[Frame] = []
        self._flush_scheduled = False
        self._late: list[Mux] = []
        self._runtime: Runtime = runtime or GeventRuntime()
        self._malformed = 0

    # -- path ---------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the session is established."""
        return self.session is not None and self.session.state is SessionState.READY

    def attach(self, send: Callable[[Sequence[bytes]], bool], session: Session) -> None:
        """Talk over a new path; `send` gets [route, block, bulk…]."""
        self.detach()
        self._send = send
        self.session = session
        self._say(*session.start())

    def detach(self) -> None:
        """The path is gone; calls and streams wait for the next."""
        self._send = None
        self.session = None
        self._control.clear()
        now = self._runtime.now()
        for mux in self.muxes.values():
            mux.path_down(now)

    def lose(self, reason: str) -> None:
        """The path broke: detach and tell the delegate."""
        self.detach()
        for call_id in self._retries.path_lost(self._runtime.now()):
            self._fail(call_id)
        self._delegate.on_lost(self, reason)

    def welcome(self, body: dict[str, Any]) -> None:
        """Listening side: accept the peer that was just greeted."""
        if self.session is not None:
            self._say(self.session.welcome(body))
            self._ask_again()
            self.flush()

    def refuse(self, code: str, text: str) -> None:
        """Listening side: refuse the peer that was just greeted."""
        if self.session is not None:
            self._say(self.session.refuse(code, text))
            self.flush()

    def goodbye(self, reason: str) -> None:
        """Leave on purpose; the path is detached afterwards."""
        if self.session is not None and self.ready:
            self._say(self.session.bye(reason))
            self.flush()
        self.detach()

    # -- calls and events ---------------------------------------------------------------------------------------

    def call(
        self, op: str, args: dict[str, Any], *, call_id: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Ask and wait for the answer, across lost paths. Blocks the calling greenlet.

        Raises:
            PRouterError: what the peer answered.
            AgentUnavailable: no answer within `timeout` seconds.
            TooLarge: the peer would not take so much.
        """
        result: AsyncResult[Result] = AsyncResult()
        call_id = self.ask(op, args, result.set, call_id=call_id)
        try:
            answer = result.get(timeout=timeout)
        except gevent.Timeout:
            raise AgentUnavailable(f"no answer to {op} within {timeout:g} s", retry_after=1) from None
        finally:
            self.forget(call_id)
        assert answer is not None
        if answer.error is not None:
            raise answer.error
        return answer.value

    def ask(self, op: str, args: dict[str, Any], done: Callable[[Result], None], *, call_id: str | None = None) -> str:
        """Ask without waiting; the call's id. `done` gets the answer, across lost paths, unless it is forgotten."""
        call_id, frame = self._caller.call(op, args, call_id)
        self._results[call_id] = done
        if self._retries.add(call_id, self._runtime.now(), up=self.ready):
            self._say(frame)
        return call_id

    def forget(self, call_id: str) -> None:
        """Give a call up. Idempotent."""
        self._results.pop(call_id, None)
        self._caller.forget(call_id)
        self._retries.remove(call_id)

    def _ask_again(self) -> None:
        """The path is up: send what is not answered, but for what seems to be why paths are lost."""
        self._say(*self._caller.frames(self._retries.path_up(self._runtime.now())))

    def _fail(self, call_id: str) -> None:
        """The path breaks whenever this is asked."""
        done = self._results.pop(call_id, None)
        self._caller.forget(call_id)
        self._retries.remove(call_id)
        log.error("event=call_breaks_link call=%s", call_id)
        if done is not None:
            text = "the connection broke each time this was asked; the log of the other end may tell why"
            done(Result(call_id, {}, ProtocolError(text, code="call_breaks_link")))

    def notify(self, name: str, body: dict[str, Any]) -> None:
        """Send an event; lost when there is no path, or when no peer would take it."""
        if self.ready:
            try:
                frame = event_frame(name, body)
            except ProtocolError as error:
                log.error("event=event_not_sent name=%s error=%r", name, error.detail)
            else:
                self._say(frame)

    def ping(self) -> None:
        """Ask for a sign of life now; where the connection is known to be closed, sending tells."""
        if self.session is not None and self.ready:
            self._say(self.session.ping(self._runtime.now()))
            self.flush()

    # -- streams ------------------------------------------------------------------------------------------------

    def mux(self, route: bytes) -> Mux:
        """The streams with the peer behind `route`."""
        mux = self.muxes.get(route)
        if mux is None:
            mux = Mux(
                self._on_output,
                on_late_output=self._on_late_output,
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

    def route_up(self, route: bytes, process: str = "") -> None:
        """The peer behind `route` is reachable (again): this process of it, if it tells."""
        self._floods.discard(route)
        self.mux(route).path_up(process)

    def route_down(self, route: bytes) -> None:
        """The peer behind `route` is away; its streams wait."""
        mux = self.muxes.get(route)
        if mux is not None:
            mux.path_down(self._runtime.now())

    def route_gone(self, route: bytes, code: str, text: str) -> None:
        """The peer behind `route` will not come back; its streams are reset."""
        self._floods.discard(route)
        mux = self.muxes.pop(route, None)
        if mux is not None:
            if mux.highest:
                self._floors[route] = mux.highest
                if len(self._floors) > _MAX_FLOORS:
                    self._floors.popitem(last=False)
            self._dispatch(route, mux.peer_gone(code, text))

    def keep_routes(self, present: Collection[bytes], code: str, text: str) -> None:
        """Nobody is there but the peers behind these routes; streams with others are reset."""
        for route in [route for route in self.muxes if route not in present]:
            self.route_gone(route, code, text)

    # -- input --------------------------------------------------------------------------------------------------

    def receive(self, parts: list[bytes]) -> None:
        """Process one message: [route, block, bulk…]."""
        try:
            route = parts[0]
            if self._floods and route in self._floods:
                return
            frames = decode(parts[1:])
            if route:
                mux = self.muxes.get(route)
                if mux is not None:
                    if self.session is not None:
                        self.session.heard(self._runtime.now())
                    known = mux.malformed
                    self._dispatch(route, mux.receive(frames))
                    if mux.strays > _STRAYS_AT_ONCE:
                        self._look_at_strays(route, mux, _STRAYS_AT_ONCE)
                    if mux.malformed != known == 0:
                        log.warning("event=malformed_stream_frame peer=%.64r", route)
                return
            for frame in frames:
                self._receive_control(frame)
        except ProtocolError as error:
            self._malformed += 1
            if self._malformed == 1:
                log.warning("event=malformed_frame error=%s", error.detail)

    def tick(self, now: float) -> None:
        """To be called several times per heartbeat interval."""
        passed, self._ticked = now - self._ticked, now
        for route, mux in list(self.muxes.items()):
            self._dispatch(route, mux.tick(now))
            if mux.strays:
                self._look_at_strays(route, mux, _STRAYS * max(passed, _STRAYS_TIME))
                mux.strays = 0
        if self.session is not None:
            frames, event = self.session.tick(now)
            self._say(*frames)
            if event is not None:
                self._session_event(event)
        if self._retries.deadline is not None and self.ready:
            self._say(*self._caller.frames(self._retries.due(now)))

    def _look_at_strays(self, route: bytes, mux: Mux, most: float) -> None:
        """Tell of a peer that sent more frames of no use than `most`, and some for each stream."""
        if mux.strays > most + 4 * len(mux.streams):
            strays, mux.strays = mux.strays, 0
            if self.on_strays is not None:
                self._floods.add(route)
                self.on_strays(route, strays)

    def excuse(self, seconds: float, now: float) -> None:
        """This process did not listen for so long up to now: nobody's silence meanwhile counts."""
        if self.session is not None:
            self.session.excuse(seconds, now)

    def _receive_control(self, frame: Frame) -> None:
        session = self.session
        if session is None:
            return
        kind = frame.type
        if kind < CALL:
            answers, event = session.receive(frame, self._runtime.now())
            self._say(*answers)
            if event is not None:
                self._session_event(event)
            return
        if session.state is not SessionState.READY:
            return
        session.heard(self._runtime.now())
        if kind == REPLY:
            result = self._caller.receive(frame)
            if result is not None:
                self._retries.remove(result.call_id)
            done = self._results.pop(result.call_id, None) if result is not None else None
            if result is not None and done is not None:
                done(result)
        elif kind == EVENT:
            name, body = read_event(frame)
            self._delegate.on_event(self, name, body)
        elif kind == CALL:
            todo = self._responder.receive(frame)
            if isinstance(todo, Request):
                self._runtime.spawn(self._carry_out, todo)
            elif todo is not None:
                self._say(todo)
        else:
            raise ProtocolError(f"unexpected frame type {kind}")

    def _carry_out(self, request: Request) -> None:
        try:
            reply = self._responder.reply(request.call_id, self._delegate.on_request(self, request))
        except PRouterError as error:
            reply = self._responder.reply(request.call_id, error=error)
        except Exception as error:
            log.exception("event=call_failed op=%s call=%s", request.op, request.call_id)
            reply = self._responder.reply(
                request.call_id, error=PRouterError(f"{request.op} failed: {type(error).__name__}")
            )
        if self.ready:
            self._say(reply)

    def _session_event(self, event: SessionEvent) -> None:
        if isinstance(event, Welcomed):
            self._ask_again()
            self._delegate.on_ready(self, event.body)
        elif isinstance(event, Greeted):
            self._delegate.on_greeted(self, event.body)
        elif isinstance(event, Refused):
            self.detach()
            self._delegate.on_refused(self, event.code, event.text)
        elif isinstance(event, Lost):
            self.lose(event.reason)

    def _dispatch(self, route: bytes, events: list[StreamEvent]) -> None:
        for event in events:
            try:
                self._handle(route, event)
            except Exception:
                # One stream's handler must not cost the others their events.
                log.exception(
                    "event=stream_failed stream=%d route=%s", event.stream.sid, route.decode("ascii", "replace")
                )
                event.stream.reset("internal", "the stream's handler failed")

    def _handle(self, route: bytes, event: StreamEvent) -> None:
        stream = event.stream
        kind = type(event)
        handler: StreamHandler | None = stream.handler
        if kind is Opened:
            self._delegate.on_stream(self, route, stream, event.target)  # type: ignore[union-attr]
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
            stream.handler = None  # Nothing follows; a stream and its handler hold each other.
            handler.on_reset(event.code, event.text)  # type: ignore[union-attr]
        elif kind is Closed:
            stream.handler = None
            handler.on_closed()

    # -- output -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send everything that is queued now instead of at the end of the loop iteration."""
        if self.bulk and not self._watching:
            self._watching = True
            self._runtime.later(_BULK_TICK, self._watch_bulk)
        send = self._send
        control, self._control = self._control, []
        dirty, self._dirty = self._dirty, []
        if send is None:
            return
        for frames in batches(control):
            send([b"", *encode(frames)])
        for mux in dirty:
            for frames in batches(mux.take()):
                send([mux.tag, *encode(frames)])

    def _watch_bulk(self) -> None:
        """See which streams are fast still, for as long as there are any."""
        self.bulk.tick()
        self._watching = bool(self.bulk)
        if self._watching:
            self._runtime.later(_BULK_TICK, self._watch_bulk)

    def _say(self, *frames: Frame) -> None:
        if frames and self._send is not None:
            self._control.extend(frames)
            self._schedule_flush()

    def _on_output(self, mux: Mux) -> None:
        self._dirty.append(mux)
        self._schedule_flush()

    def _on_late_output(self, mux: Mux) -> None:
        self._late.append(mux)
        if len(self._late) == 1:
            self._runtime.later(_LATE, self._late_is_now)

    def _late_is_now(self) -> None:
        late, self._late = self._late, []
        self._dirty += late
        self.flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._runtime.soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flush_scheduled = False
        self.flush()
