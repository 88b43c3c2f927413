"""All streams between two peers: opening, dispatch, loss of the path, resumption, and what is remembered of the ended.

One peer opens streams (a worker), the other accepts them (an agent). The *path* between them is up or down; frames sent
while it is down are not queued: streams keep what was not acknowledged, and when the path is back each end tells the
other how far it has received (RESUME) and the other repeats the rest.

Rules that make this safe under any loss, repetition and delay:

* Bytes are taken in order only; repeated ones are skipped, a gap is dropped and answered by RESUME, once per gap.
* A RESUME that asks is answered by one that does not. A RESUME of stream 0 lists the streams its sender has, and the
  other end asks about those it has beyond. So one end that noticed the loss is enough.
* What was repeated since the path came up is not repeated again unless that is asked for.
* An OPEN is repeated until the first frame of the acceptor arrives; one of a known stream is answered like a RESUME
  that asks.
* An ended stream leaves a tombstone, so that a late RESUME is answered with how it ended.
* A path down for longer than `resume_timeout` resets every stream with the code ``path_lost``.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import count
from typing import Any, NamedTuple

from prouter.errors import ProtocolError
from prouter.fabric.bulk import GROWTH, Bulk
from prouter.fabric.frames import ACK, ASK, DATA, FIN, OPEN, RESET, RESUME, STREAM_TYPES, Frame, pack_body, unpack_body
from prouter.fabric.stream import Direction, Stream

__all__ = [
    "DEFAULT_WINDOW",
    "MAX_WINDOW",
    "RESUME_TIMEOUT",
    "Closed",
    "Finished",
    "Mux",
    "Opened",
    "Received",
    "ResetReceived",
    "StreamEvent",
    "Writable",
]

DEFAULT_WINDOW = 256 * 1024
"""Bytes in flight per stream and direction, to begin with."""
MAX_WINDOW = 64 * 1024 * 1024
"""Largest window an acceptor agrees to."""
_LISTED = 64
"""Bytes of a list of streams that take as long as a frame."""
_MOST_LISTED = 8 * 131_072
"""Bytes of a list of streams: twice as many as an acceptor has by default."""
_WASTED = 4096
"""Bytes of no use, or that are asked for again, that cost like a frame."""
_LATE = GROWTH * DEFAULT_WINDOW
"""Bytes that may have been under way to a stream that has ended."""
_STRAYS = 100_000
"""Frames of no use after which a peer is not listened to when it asks for repetition, until `Mux.strays` is taken."""
RESUME_TIMEOUT = 30.0
"""Seconds a stream survives without a path."""
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""The code of a RESET."""
_MOST_TEXT = 4096
"""Characters of a RESET's text that count."""
_TOMBSTONES = 16384
"""How many ended streams are remembered."""


class Opened(NamedTuple):
    """The peer opened `stream` to `target`."""

    stream: Stream
    target: dict[str, Any]


class Received(NamedTuple):
    """New bytes; call `Stream.consume` once they are used."""

    stream: Stream
    data: bytes


class Finished(NamedTuple):
    """The peer writes nothing more; every byte has been delivered before."""

    stream: Stream


class Writable(NamedTuple):
    """A write that was cut short may go on."""

    stream: Stream


class ResetReceived(NamedTuple):
    """The stream ended early; its code and text say why."""

    stream: Stream
    code: str
    text: str


class Closed(NamedTuple):
    """Both directions are done and acknowledged: every byte written was consumed by the peer.

    Reported when a frame of the peer completes the stream; when the application's own `Stream.consume` does,
    `Stream.closed` says so.
    """

    stream: Stream


StreamEvent = Opened | Received | Finished | Writable | ResetReceived | Closed


class Mux:
    """The streams with one peer.

    Args:
        on_output: called when the first frame is queued after `take` emptied the queue.
        on_late_output: called instead when that frame may wait a few milliseconds for others to leave with; `on_output`
            follows when one that may not is queued.
        accepts: whether the peer may open streams here.
        max_streams: how many streams may be open at once; an OPEN beyond it is reset with ``overloaded``.
        resume_timeout: seconds without a path after which streams are given up.
        sids: ids for the streams opened here, each only once, also over several of these with the same peer: it
            may remember how streams ended that were given up here.
        process: of this end, empty where nobody need know. What comes before the peer has named it is meant for one
            that was here before.
        floor: streams up to this id were opened here before, and given up: they are not opened again.
        bulk: the fast streams of this process; its owner calls its `tick`.

    Attributes:
        strays: frames that led to no stream, brought nothing new or asked for repetition, large ones and those that
            ask for much counted as several; the owner counts from 0 again when it likes.
    """

    def __init__(
        self,
        on_output: Callable[[Mux], None],
        *,
        on_late_output: Callable[[Mux], None] | None = None,
        accepts: bool = False,
        max_streams: int = 65536,
        resume_timeout: float = RESUME_TIMEOUT,
        sids: Iterator[int] | None = None,
        process: str = "",
        floor: int = 0,
        bulk: Bulk | None = None,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.up = False
        self.tag: Any = None
        self.malformed = 0
        self.strays = 0
        self.ticks = 0
        """How often `tick` was called."""
        self.highest = floor
        """Highest id of the streams that the peer opened."""
        self._floor = floor
        self._number = _number(process)
        self._named = self._number == 0
        """Whether the peer knows that it talks to this process."""
        self._on_output = on_output
        self._on_late_output = on_late_output or on_output
        self._accepts = accepts
        self._max_streams = max_streams
        self._resume_timeout = resume_timeout
        self._sids = sids if sids is not None else count(1)
        self.bulk = bulk if bulk is not None else Bulk()
        self._out: list[Frame] = []
        self._announced = False
        self._events: list[StreamEvent] | None = None
        self._round = 0
        """Grows whenever queued frames leave or are dropped."""
        self._listed = False
        """Whether the peer has told its streams since the path came up."""
        self._late: dict[int, int] = {}
        """Bytes that came for ended streams: what was under way when they ended is nobody's fault."""
        self._ack_due: dict[int, Stream] = {}
        self._gaps: dict[int, int] = {}
        self._tombstones: OrderedDict[int, tuple[int, str | None]] = OrderedDict()
        self._down_since: float | None = None

    # -- the application's side ---------------------------------------------------------------------------------

    def open(self, target: dict[str, Any], window: int = DEFAULT_WINDOW) -> Stream:
        """A new stream to `target`; bytes may be written at once."""
        sid = next(self._sids)
        payload = pack_body(target)
        stream = Stream(self, sid, window, payload)
        self.streams[sid] = stream
        self._send(Frame(OPEN, 0, sid, window, 0, payload))
        return stream

    # -- the path -----------------------------------------------------------------------------------------------

    def path_up(self, process: str = "") -> None:
        """The path is there (again): resume every stream. Also right when a path was replaced unnoticed.

        Args:
            process: of the other end, if that is known.
        """
        self.up = True
        self._down_since = None
        self._listed = False
        self._drop_output()
        self._gaps.clear()
        self._send(Frame(RESUME, offset=_number(process), payload=_pack_roster(self.streams)))
        for stream in self.streams.values():
            self._resume(stream)

    def path_down(self, now: float) -> None:
        """The path is gone; streams wait for it. Idempotent."""
        if self.up or self._down_since is None:
            self.up = False
            self._down_since = now
            self._drop_output()

    def peer_gone(self, code: str, text: str) -> list[StreamEvent]:
        """The peer itself is gone and with it every stream."""
        events: list[StreamEvent] = []
        for stream in list(self.streams.values()):
            self._forget(stream, code)
            events.append(ResetReceived(stream, code, text))
        self._drop_output()
        self._down_since = None
        return events

    def tick(self, now: float) -> list[StreamEvent]:
        """To be called about once a second: late acknowledgements, and streams whose path stays away."""
        self.ticks += 1
        if self._ack_due and self.up:
            due, self._ack_due = self._ack_due, {}
            for stream in due.values():
                if not stream.closed and stream._consumed != stream._told:
                    stream._acknowledge()
        if self._down_since is not None and now - self._down_since >= self._resume_timeout:
            return self.peer_gone("path_lost", f"the path was lost for {self._resume_timeout:g} s")
        return []

    # -- frames -------------------------------------------------------------------------------------------------

    def take(self) -> list[Frame]:
        """The frames to send now, in order."""
        out = self._out
        self._out = []
        self._round += 1
        self._announced = False
        return out

    def receive(self, frames: Iterable[Frame]) -> list[StreamEvent]:
        """Process frames of the peer; the events they cause, in order.

        A frame that no correct peer sends costs its own stream, nothing else; it is counted in `malformed`.
        """
        events: list[StreamEvent] = []
        self._events = events
        streams = self.streams
        for frame in frames if self._named else self._meant_for_us(frames):
            stream = streams.get(frame.sid)
            kind = frame.type
            if stream is None:
                self.strays += self._cost(frame)
                try:
                    self._receive_unknown(frame, events)
                except ProtocolError:
                    self.malformed += 1
                continue
            stream._confirmed = True
            if kind == DATA:
                if frame.ack > stream._acked and stream._on_ack(frame.ack):
                    events.append(Writable(stream))
                self._receive_data(stream, frame, events)
            elif kind == ACK:
                if frame.ack <= stream._acked:
                    self.strays += 1
                if 0 < frame.offset <= stream.window * GROWTH:
                    stream._limit = frame.offset
                if stream._on_ack(frame.ack):
                    events.append(Writable(stream))
            elif kind == RESUME:
                self.strays += 1
                self._receive_resume(stream, frame, events)
            elif kind == OPEN:
                self.strays += 1
                self._receive_open_again(stream)
            else:
                self._receive_last(stream, frame, events)
        self._events = None
        return events

    def _cost(self, frame: Frame) -> int:
        """What a frame that leads to no stream counts."""
        size = len(frame.payload)
        if frame.type == RESUME:
            return 1 + size // _LISTED
        if frame.type == DATA and frame.sid in self._tombstones:
            late = self._late[frame.sid] = self._late.get(frame.sid, 0) + size
            if late <= _LATE:
                return 1
        return 1 + size // _WASTED

    def _meant_for_us(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Frames from the first on that tells that the peer knows which process this is."""
        for frame in frames:
            if not self._named:
                self._named = frame.type == RESUME and frame.sid == 0 and frame.offset in (0, self._number)
            if self._named:
                yield frame

    def _receive_data(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        was_open = stream.receiving is Direction.OPEN
        try:
            data = stream._on_data(frame)
        except OverflowError as error:
            self.malformed += 1
            self._break(stream, str(error), events)
            return
        if not data and frame.payload:
            self._wasted(stream, len(frame.payload))
        if data is None:
            if self._gaps.get(stream.sid) != stream._received:
                self._gaps[stream.sid] = stream._received
                self._send(stream._position())
            return
        if data:
            events.append(Received(stream, data))
        if was_open and stream.receiving is Direction.FIN:
            events.append(Finished(stream))
            stream._finish_receiving()
        elif frame.flags & FIN and not was_open:
            stream._acknowledge()

    def _wasted(self, stream: Stream, size: int) -> None:
        """Bytes that had come before, or beyond a gap: as many as may be under way when the path is back do no harm."""
        stream._wasted += size
        if stream._wasted > 2 * GROWTH * stream.window:
            self.strays += 1 + size // _WASTED

    def _repeat(self, frames: Iterable[Frame], *, free: bool) -> None:
        """Say something again; what it costs is counted if the peer asked for it more than once."""
        for frame in frames:
            if not free:
                self.strays += 1 + len(frame.payload) // _WASTED
            self._send(frame)

    def _receive_open_again(self, stream: Stream) -> None:
        """The opener has heard nothing of the stream yet, whatever was said."""
        if self._accepts:
            self._send(stream._position())
            stream._repeated = 0
            for repeated in stream._repeat_from(0):
                self._send(repeated)

    def _resume(self, stream: Stream, *, free: bool = True) -> None:
        """Tell the peer how far a stream got, and ask how far it did; or open it again when that may have been lost."""
        stream._repeated = None
        if free:
            stream._wasted = 0
            stream._asked = False
        self._repeat(stream._resume_frames(), free=free)

    def _receive_roster(self, frame: Frame) -> None:
        """The streams the peer has: what it lacks was never opened there, or has ended unnoticed here."""
        if self.strays > _STRAYS:
            return
        theirs = _unpack_roster(frame.payload)
        free, self._listed = not self._listed, True
        for stream in list(self.streams.values()):
            if stream.sid not in theirs:
                self._resume(stream, free=free)

    def _receive_resume(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        if stream._on_ack(frame.ack):
            events.append(Writable(stream))
        if frame.flags & ASK:
            if stream._answered == self._round or self.strays > _STRAYS:
                return  # The answer has not left yet; or nobody who means well asks so often.
            stream._answered = self._round
            self._send(stream._position())
        elif stream._repeated is not None and frame.offset >= stream._repeated:
            return
        stream._repeated = frame.offset
        free, stream._asked = not stream._asked, True
        self._repeat(stream._repeat_from(frame.offset), free=free)

    def _receive_last(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        """A reset, or a frame that makes no sense: either way the stream is over."""
        try:
            if frame.type != RESET:
                raise ProtocolError(f"unexpected frame type {frame.type}")
            self._receive_reset(stream, frame, events)
        except ProtocolError as error:
            self.malformed += 1
            self._break(stream, error.detail, events)

    def _break(self, stream: Stream, text: str, events: list[StreamEvent]) -> None:
        events.append(ResetReceived(stream, "protocol_error", text))
        self._reset(stream, "protocol_error", text)

    def _receive_reset(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        code, text = _told(unpack_body(frame.payload))
        stream._on_last_ack(frame.ack)
        self._forget(stream, code)
        events.append(ResetReceived(stream, code, text))

    def _receive_unknown(self, frame: Frame, events: list[StreamEvent]) -> None:
        kind = frame.type
        if kind not in STREAM_TYPES:
            raise ProtocolError(f"unexpected frame type {kind}")
        if frame.sid == 0:
            if kind != RESUME:
                raise ProtocolError("stream 0 does not exist")
            self._receive_roster(frame)
            return
        if kind in (RESET, ACK):
            return
        tombstone = self._tombstones.get(frame.sid)
        if tombstone is not None:
            consumed, code = tombstone
            if code is None:
                self._send(Frame(ACK, 0, frame.sid, 0, consumed))
            else:
                self._send(_reset_frame(frame.sid, code, "the stream has ended"))
        elif kind == OPEN and frame.sid <= self._floor:
            self._send(_reset_frame(frame.sid, "worker_gone", "the stream was given up"))
        elif kind == OPEN:
            self._accept(frame, events)
        else:
            if self._accepts:
                self._bury(frame.sid, 0, "unknown_stream")
            self._send(_reset_frame(frame.sid, "unknown_stream", "no such stream"))

    def _accept(self, frame: Frame, events: list[StreamEvent]) -> None:
        if not self._accepts:
            raise ProtocolError("this peer accepts no streams")
        if len(self.streams) >= self._max_streams:
            self._send(_reset_frame(frame.sid, "overloaded", "too many streams"))
            return
        if not 0 < frame.offset <= MAX_WINDOW:
            raise ProtocolError("window out of range")
        stream = Stream(self, frame.sid, frame.offset, None)
        target = unpack_body(frame.payload)
        self.streams[frame.sid] = stream
        self.highest = max(self.highest, frame.sid)
        events.append(Opened(stream, target))

    # -- the streams' side --------------------------------------------------------------------------------------

    def _send(self, frame: Frame) -> None:
        if not self.up:
            return
        self._out.append(frame)
        if not self._announced:
            self._announced = True
            self._on_output(self)

    def _send_late(self, frame: Frame) -> None:
        if not self.up:
            return
        self._out.append(frame)
        if len(self._out) == 1:
            self._on_late_output(self)

    def _drop_output(self) -> None:
        self._out.clear()
        self._round += 1
        self._announced = False

    def _check_closed(self, stream: Stream) -> None:
        if stream.closed and stream.sid in self.streams:
            self._forget(stream, None)
            if self._events is not None:
                self._events.append(Closed(stream))

    def _reset(self, stream: Stream, code: str, text: str) -> None:
        self._forget(stream, code)
        self._send(_reset_frame(stream.sid, code, text, stream._consumed))

    def _forget(self, stream: Stream, code: str | None) -> None:
        stream.reset_code = code
        stream._kept.clear()
        self.streams.pop(stream.sid, None)
        self.bulk.discard(stream)
        self._ack_due.pop(stream.sid, None)
        self._gaps.pop(stream.sid, None)
        self._bury(stream.sid, stream._consumed, code)

    def _bury(self, sid: int, consumed: int, code: str | None) -> None:
        """Remember how a stream ended; an OPEN that is still on its way must not bring it back."""
        self._tombstones[sid] = (consumed, code)
        if len(self._tombstones) > _TOMBSTONES:
            forgotten, _ = self._tombstones.popitem(last=False)
            self._late.pop(forgotten, None)


def _number(process: str) -> int:
    """What stands for a process in 64 bits; 0 for none."""
    return int.from_bytes(blake2b(process.encode(), digest_size=8).digest(), "little") if process else 0


def _pack_roster(sids: Iterable[int]) -> bytes:
    """Stream ids, u64 little-endian each."""
    known = list(sids)
    return struct.pack(f"<{len(known)}Q", *known)


def _unpack_roster(payload: bytes) -> frozenset[int]:
    if len(payload) % 8 or len(payload) > _MOST_LISTED:
        raise ProtocolError(f"a list of streams needs 8 bytes each, {_MOST_LISTED} at most")
    return frozenset(struct.unpack(f"<{len(payload) // 8}Q", payload))


def _told(body: dict[str, Any]) -> tuple[str, str]:
    """Code and text of a RESET. Codes are remembered and become header fields: what is none counts as ``reset``."""
    code, text = body.get("code"), body.get("text")
    usable = isinstance(code, str) and _CODE.fullmatch(code) is not None
    return str(code) if usable else "reset", text[:_MOST_TEXT] if isinstance(text, str) else ""


def _reset_frame(sid: int, code: str, text: str, consumed: int = 0) -> Frame:
    return Frame(RESET, 0, sid, 0, consumed, pack_body({"code": code, "text": text}))
