"""All streams between two peers: opening, dispatch, loss of the path, and the end.

One peer opens streams (a worker), the other accepts them (an agent). The *path* between them is up or down. Frames sent
while it is down are not queued: streams keep what the peer has not acknowledged, and resume when the path is back
(`prouter.fabric.resumption`).

Rules that make this safe under any loss, repetition and delay of messages:

* Bytes are taken in order only. Bytes that come again are skipped; bytes after a gap are dropped and resent.
* An OPEN is resent over every new path until the first frame of the acceptor arrives.
* An ended stream leaves a tombstone, so that a late frame is answered with how the stream ended and a late OPEN does
  not start it again.
* A path that stays down for `resume_timeout` resets every stream with the code ``path_lost``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

from prouter.errors import ProtocolError
from prouter.fabric.events import Closed, Finished, Opened, Received, ResetReceived, StreamEvent, Writable
from prouter.fabric.frames import ACK, DATA, FIN, OPEN, RESET, RESUME, STREAM_TYPES, Frame, pack_body, unpack_body
from prouter.fabric.output import Output
from prouter.fabric.payloads import process_number, read_reset, reset_frame
from prouter.fabric.resumption import Resumption
from prouter.fabric.strays import Strays
from prouter.fabric.stream import Direction, Stream
from prouter.fabric.tombstones import Tombstones
from prouter.fabric.windows import GROWTH, Bulk

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
"""Bytes of the largest first window that an acceptor agrees to."""
RESUME_TIMEOUT = 30.0
"""Seconds that a stream survives without a path."""
_LATE_BYTES = GROWTH * DEFAULT_WINDOW
"""Bytes that may come for a stream after its end without counting as useless: they were in flight when it ended."""


class Mux:
    """The streams with one peer.

    Args:
        on_output: called when the first frame is queued after `take` emptied the queue.
        on_late_output: called instead when that frame may wait a few milliseconds for others to leave with;
            `on_output` follows when one that may not is queued.
        accepts: whether the peer may open streams here.
        max_streams: how many streams may be open at once; an OPEN beyond it is reset with ``overloaded``.
        resume_timeout: seconds without a path after which streams are given up.
        sids: ids for the streams opened here. Each is used once only, over all muxes with the same peer: the peer may
            remember how streams ended that were given up here.
        process: name of this process, which the peer tells its frames to be meant for; frames meant for a process that
            was here before are dropped. Empty where the peer need not know.
        floor: the peer opened streams up to this id here before, and they were given up: they are not opened again.
        bulk: the fast streams of this process, whose owner calls its `tick`.

    Attributes:
        streams: open streams by id.
        tag: free for the owner.
        malformed: how many frames came that no correct peer sends.
        ticks: how often `tick` was called.
        highest: highest id of the streams that the peer opened.
        bulk: as given.
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
        self.tag: Any = None
        self.malformed = 0
        self.ticks = 0
        self.highest = floor
        self.bulk = bulk if bulk is not None else Bulk()
        self._floor = floor
        self._number = process_number(process)
        self._meant = self._number == 0
        """Whether the peer has told that its frames are meant for this process."""
        self._accepts = accepts
        self._max_streams = max_streams
        self._resume_timeout = resume_timeout
        self._sids = sids if sids is not None else count(1)
        self._output = Output(partial(on_output, self), partial(on_late_output or on_output, self))
        self._strays = Strays()
        self._resumption = Resumption(self._output, self._strays)
        self._tombstones = Tombstones()
        self._events: list[StreamEvent] | None = None
        """Events of the frames that `receive` is processing, None outside of it."""
        self._unacknowledged: dict[int, Stream] = {}
        """Streams whose consumed bytes the peer is told of with the next tick."""
        self._down_since: float | None = None

    # -- the application's side -----------------------------------------------------------------------------------

    def open(self, target: dict[str, Any], window: int = DEFAULT_WINDOW) -> Stream:
        """Open a stream to `target`, with a first window of `window` bytes; bytes may be written at once."""
        sid = next(self._sids)
        payload = pack_body(target)
        stream = Stream(self, self._output, self.bulk, sid, window, payload)
        self.streams[sid] = stream
        # No answer is waited for: the first bytes leave in the same message.
        self._output.send(Frame(OPEN, 0, sid, window, 0, payload))
        return stream

    @property
    def strays(self) -> int:
        """Frames that led to no stream, brought nothing new or asked for repetition; costly ones count as several.

        The owner sets it to 0 again when it likes.
        """
        return self._strays.count

    @strays.setter
    def strays(self, number: int) -> None:
        self._strays.count = number

    # -- the path -------------------------------------------------------------------------------------------------

    def path_up(self, process: str = "") -> None:
        """Resume every stream over a new path. Also right when a path was replaced unnoticed.

        Args:
            process: of the other end, if that is known.
        """
        self._down_since = None
        self._output.up = True
        self._output.drop()
        self._resumption.begin(self.streams.values(), process)

    def path_down(self, now: float) -> None:
        """Let all streams wait for the next path, from `now` on (seconds, monotonic). Idempotent."""
        # Not when it is down already: a path reported lost twice must not get the timeout twice.
        if self._output.up or self._down_since is None:
            self._output.up = False
            self._down_since = now
            self._output.drop()

    def peer_gone(self, code: str, text: str) -> list[StreamEvent]:
        """End every stream, because the peer itself is gone; return their events."""
        events: list[StreamEvent] = []
        for stream in list(self.streams.values()):
            self._forget(stream, code)
            events.append(ResetReceived(stream, code, text))
        self._output.drop()
        # Nothing is left that could time out.
        self._down_since = None
        return events

    def tick(self, now: float) -> list[StreamEvent]:
        """Send acknowledgements that wait, and give streams up if the path stays down; call it about once a second.

        Args:
            now: seconds of the same clock as in `path_down`.
        """
        self.ticks += 1
        if self._unacknowledged and self._output.up:
            due, self._unacknowledged = self._unacknowledged, {}
            for stream in due.values():
                window = stream.receive_window
                # A DATA or ACK may have told the peer meanwhile.
                if not stream.closed and window.consumed != window.acknowledged:
                    stream.acknowledge()
        if self._down_since is not None and now - self._down_since >= self._resume_timeout:
            return self.peer_gone("path_lost", f"the path was lost for {self._resume_timeout:g} s")
        return []

    # -- frames ---------------------------------------------------------------------------------------------------

    def take(self) -> list[Frame]:
        """Remove and return the frames to send now, in order."""
        return self._output.take()

    def receive(self, frames: Iterable[Frame]) -> list[StreamEvent]:
        """Process frames of the peer; return the events that they cause, in order.

        A frame that no correct peer sends costs its own stream and nothing else; it is counted in `malformed`.
        """
        events: list[StreamEvent] = []
        self._events = events
        streams = self.streams
        for frame in frames if self._meant else self._meant_for_us(frames):
            stream = streams.get(frame.sid)
            if stream is None:
                self._receive_without_stream(frame, events)
                continue
            kind = frame.type
            # Any frame of the peer shows that it has the stream, so OPEN need not be resent.
            stream.confirmed = True
            # By frequency: nearly all frames are DATA.
            if kind == DATA:
                if frame.ack > stream.acknowledged and stream.receive_acknowledgement(frame.ack):
                    events.append(Writable(stream))
                self._receive_data(stream, frame, events)
            elif kind == ACK:
                if frame.ack <= stream.acknowledged:
                    self._strays.add()
                # The grant first: `Writable` promises room.
                stream.receive_grant(frame.offset)
                if stream.receive_acknowledgement(frame.ack):
                    events.append(Writable(stream))
            elif kind == RESUME:
                self._strays.add()
                if stream.receive_acknowledgement(frame.ack):
                    events.append(Writable(stream))
                self._resumption.receive_position(stream, frame)
            elif kind == OPEN:
                self._strays.add()
                if self._accepts:
                    self._resumption.receive_open_again(stream)
            else:
                self._receive_last(stream, frame, events)
        self._events = None
        return events

    def _meant_for_us(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Skip frames until a roster tells that the peer's frames are meant for this process.

        Frames for a process that was here before must not reach streams of this one: ids may be the same.
        """
        for frame in frames:
            if not self._meant:
                # 0 comes from a peer that tells nothing about processes.
                self._meant = frame.type == RESUME and frame.sid == 0 and frame.offset in (0, self._number)
            if self._meant:
                yield frame

    def _receive_data(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        ends = frame.flags & FIN
        was_open = not ends or stream.receiving is Direction.OPEN
        try:
            data = stream.receive_data(frame)
        except OverflowError as error:
            self._break(stream, str(error), events)
            return
        if not data and frame.payload:
            self._resumption.receive_useless(stream, len(frame.payload))
        if data is None:
            self._resumption.receive_gap(stream)
            return
        if data:
            events.append(Received(stream, data))
        if not ends:
            return
        if was_open and stream.receiving is Direction.FIN:
            events.append(Finished(stream))
            # The FIN may be all that is left to consume.
            stream.finish_receiving()
        elif not was_open:
            # The peer resends its FIN because it missed the acknowledgement.
            stream.acknowledge()

    def _receive_last(self, stream: Stream, frame: Frame, events: list[StreamEvent]) -> None:
        """End the stream because of a RESET, or of a frame that makes no sense."""
        try:
            if frame.type != RESET:
                raise ProtocolError(f"unexpected frame type {frame.type}")
            code, text = read_reset(frame.payload)
        except ProtocolError as error:
            self._break(stream, error.detail, events)
            return
        stream.receive_last_acknowledgement(frame.ack)
        self._forget(stream, code)
        events.append(ResetReceived(stream, code, text))

    def _break(self, stream: Stream, text: str, events: list[StreamEvent]) -> None:
        """End a stream whose peer does not keep to the protocol."""
        self.malformed += 1
        events.append(ResetReceived(stream, "protocol_error", text))
        self.end_stream(stream, "protocol_error", text)

    # -- frames that lead to no open stream -----------------------------------------------------------------------

    def _receive_without_stream(self, frame: Frame, events: list[StreamEvent]) -> None:
        self._count_stray(frame)
        try:
            if frame.type not in STREAM_TYPES:
                raise ProtocolError(f"unexpected frame type {frame.type}")
            if frame.sid:
                self._receive_unknown(frame, events)
            elif frame.type == RESUME:
                self._resumption.receive_roster(frame, list(self.streams.values()))
            else:
                raise ProtocolError("stream 0 does not exist")
        except ProtocolError:
            self.malformed += 1

    def _count_stray(self, frame: Frame) -> None:
        size = len(frame.payload)
        if frame.type == RESUME:
            self._strays.add_roster(size)
        elif frame.type == DATA and self._tombstones.get(frame.sid) is not None:
            late = self._tombstones.late_bytes(frame.sid, size)
            self._strays.add(size if late > _LATE_BYTES else 0)
        else:
            self._strays.add(size)

    def _receive_unknown(self, frame: Frame, events: list[StreamEvent]) -> None:
        """Answer a frame of a stream that is not open here: open it, or tell how it ended."""
        kind, sid = frame.type, frame.sid
        if kind in (RESET, ACK):
            return  # Its sender waits for nothing; an answer could be answered for ever.
        tombstone = self._tombstones.get(sid)
        if tombstone is not None:
            if tombstone.code is None:
                # It missed that its FIN was consumed.
                self._output.send(Frame(ACK, 0, sid, 0, tombstone.consumed))
            else:
                self._output.send(reset_frame(sid, tombstone.code, "the stream has ended"))
        elif kind == OPEN and sid <= self._floor:
            self._output.send(reset_frame(sid, "worker_gone", "the stream was given up"))
        elif kind == OPEN:
            self._accept(frame, events)
        else:
            if self._accepts:
                # The stream's OPEN may be on its way still, over a slower path. It must not open what is reset here.
                self._tombstones.add(sid, 0, "unknown_stream")
            self._output.send(reset_frame(sid, "unknown_stream", "no such stream"))

    def _accept(self, frame: Frame, events: list[StreamEvent]) -> None:
        """Take an OPEN.

        Raises:
            ProtocolError: it is malformed, or this end accepts no streams.
        """
        sid, window = frame.sid, frame.offset
        if not self._accepts:
            raise ProtocolError("this peer accepts no streams")
        if len(self.streams) >= self._max_streams:
            # No tombstone is needed: no stream was started.
            self._output.send(reset_frame(sid, "overloaded", "too many streams"))
            return
        if not 0 < window <= MAX_WINDOW:
            raise ProtocolError(f"a window of {window} bytes: 1 to {MAX_WINDOW} are accepted")
        target = unpack_body(frame.payload)  # Before the stream exists, for it may raise.
        stream = Stream(self, self._output, self.bulk, sid, window, None)
        self.streams[sid] = stream
        # Not simply `sid`: an OPEN may overtake an earlier one on another path.
        self.highest = max(self.highest, sid)
        events.append(Opened(stream, target))

    # -- what streams ask for (`StreamOwner`) ---------------------------------------------------------------------

    def acknowledge_later(self, stream: Stream) -> None:
        """Acknowledge what `stream` consumed with the next tick, unless the stream does so before."""
        self._unacknowledged[stream.sid] = stream

    def stream_advanced(self, stream: Stream) -> None:
        """Forget `stream` if both its directions are done."""
        # A reset stream is closed, too, but it has been forgotten already.
        if stream.closed and stream.sid in self.streams:
            self._forget(stream, None)
            if self._events is not None:
                self._events.append(Closed(stream))

    def end_stream(self, stream: Stream, code: str, text: str) -> None:
        """Reset `stream` here and tell the peer."""
        self._forget(stream, code)
        # Without a path the frame is dropped; the tombstone answers the peer's next RESUME.
        self._output.send(reset_frame(stream.sid, code, text, stream.receive_window.consumed))

    def _forget(self, stream: Stream, code: str | None) -> None:
        """Drop all that is kept for a stream but a tombstone."""
        stream.end(code)
        self.streams.pop(stream.sid, None)
        self._unacknowledged.pop(stream.sid, None)
        self._resumption.forget(stream.sid)
        self._tombstones.add(stream.sid, stream.receive_window.consumed, code)
