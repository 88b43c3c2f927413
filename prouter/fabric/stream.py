"""One end of a stream: an ordered, flow-controlled, resumable byte channel in both directions.

Each direction numbers its bytes from 0. Its end (FIN) takes one position of its own after the last byte, so that a peer
acknowledges the end in the same way as a byte::

    sending     acknowledged <= sent                     bytes in between are kept, for they may have to be resent
    receiving   acknowledged <= consumed <= received     see `ReceiveWindow`

State of a direction, as `Stream` sees it (a reset from either side ends both directions at once)::

    sending     OPEN --close()--> FIN --the peer acknowledges the FIN--> DONE
    receiving   OPEN --a FIN arrives in order--> FIN --all bytes are consumed--> DONE

The stream is closed when both directions are DONE.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, Protocol

from prouter.fabric.frames import ACK, ASK, DATA, FIN, OPEN, RESUME, Frame
from prouter.fabric.output import Output
from prouter.fabric.windows import GROWTH, PLAIN, Bulk, ReceiveWindow

__all__ = ["MAX_PIECE", "Direction", "Stream", "StreamOwner"]

MAX_PIECE = 1024 * 1024
"""Bytes that are worth writing at once, at most: a frame this large costs no more wake-ups than a small one."""
_SLOW_PIECE = 256 * 1024
"""Bytes of a frame, at most, where the path may be slow: no heartbeat gets past a frame that is being sent, and a path
without heartbeats is taken for lost."""


class Direction(Enum):
    """State of one direction of a stream."""

    OPEN = "open"
    """Bytes flow."""
    FIN = "fin"
    """The writer has ended; its last bytes or its FIN are not consumed and acknowledged yet."""
    DONE = "done"
    """The reader has consumed everything, the FIN included, and the writer knows."""


class StreamOwner(Protocol):
    """What a stream asks of the mux that it belongs to."""

    ticks: int  # how many there were, about one a second

    def acknowledge_later(self, stream: Stream) -> None:
        """Acknowledge what `stream` consumed with the next tick, unless the stream does so before."""

    def end_stream(self, stream: Stream, code: str, text: str) -> None:
        """Reset `stream` here and tell the peer."""

    def stream_advanced(self, stream: Stream) -> None:
        """A direction of `stream` is done; forget the stream if it is closed."""


class Stream:
    """One end of a stream; made by `Mux.open` or by an arriving OPEN, never directly.

    Applications use the methods up to `consume`; the rest is for the mux and its resumption.

    Attributes:
        sid: stream id, unique between two peers.
        window: bytes in flight in either direction to begin with; the receiving end may grant more.
        handler: free for whoever drives the stream.
        sending, receiving: state of the direction to the peer, and from it.
        reset_code: why the stream ended early, None while it has not.
        acknowledged: bytes written here that the peer had consumed when it sent the last frame that arrived.
        sent: position after the last byte written, or after the FIN.
        limit: bytes that this end may have in flight, as the peer granted last.
        receive_window: what arrived and was consumed, and what the peer may have in flight.
        confirmed: whether the peer is known to have the stream; until then OPEN is resent over every new path.
        resent_from: position from which bytes were resent over the present path, None if none were.
        resent_before: whether the peer made this end resend over the present path.
        asked_at: value of `Output.departures` when the peer last asked for this end's position.
        useless: bytes that came over the present path though they had come before, or after a gap.
    """

    __slots__ = (
        "_blocked",
        "_kept",
        "_open_payload",
        "_output",
        "_owner",
        "acknowledged",
        "asked_at",
        "confirmed",
        "handler",
        "limit",
        "receive_window",
        "receiving",
        "resent_before",
        "resent_from",
        "reset_code",
        "sending",
        "sent",
        "sid",
        "useless",
        "window",
    )

    def __init__(
        self, owner: StreamOwner, output: Output, bulk: Bulk, sid: int, window: int, open_payload: bytes | None
    ) -> None:
        self._owner = owner
        self._output = output
        self.sid = sid
        self.window = window
        self.handler: Any = None
        self.sending = Direction.OPEN
        self.receiving = Direction.OPEN
        self.reset_code: str | None = None
        self._kept: deque[tuple[int, bytes]] = deque()  # pieces that are not acknowledged, with their positions
        self.acknowledged = 0
        self.sent = 0
        self.limit = window
        self._blocked = False  # whether a writer waits for `Writable`
        self.receive_window = ReceiveWindow(window, bulk)
        self._open_payload = open_payload
        self.confirmed = open_payload is None
        self.resent_from: int | None = None
        self.resent_before = False
        self.asked_at = -1
        self.useless = 0

    # -- the application's side -----------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that `write` takes now."""
        if self.sending is not Direction.OPEN or self.reset_code is not None:
            return 0
        return self.limit - (self.sent - self.acknowledged)

    @property
    def piece(self) -> int:
        """Bytes to `write` at once where much is to be written: the larger, the fewer wake-ups they cost on their way.

        At most half a window, so that two pieces are in flight and neither end waits for the other.
        """
        limit = self.limit
        # The peer grants more than `PLAIN` windows to fast streams only, and a stream is not fast on a slow path.
        return min(limit >> 1, MAX_PIECE if limit > PLAIN * self.window else _SLOW_PIECE)

    def ask_room(self) -> int:
        """Return `room`; if it is 0 or less, a `Writable` event tells when there is some."""
        room = self.room
        if room <= 0 and self.sending is Direction.OPEN:
            self._blocked = True
        return room

    @property
    def most(self) -> int:
        """Bytes of the largest window that this end grants; a reader that passes bytes on slowly lowers it."""
        return self.receive_window.most

    @most.setter
    def most(self, size: int) -> None:
        self.receive_window.most = size

    @property
    def unread(self) -> int:
        """Bytes delivered and not yet consumed."""
        window = self.receive_window
        return window.received - window.consumed - (self.receiving is Direction.FIN)

    @property
    def delivered(self) -> bool:
        """Whether the peer has consumed everything written so far."""
        return self.acknowledged == self.sent

    @property
    def closed(self) -> bool:
        """Whether nothing more will happen: the stream was reset, or both directions are done."""
        return self.reset_code is not None or (self.sending is Direction.DONE and self.receiving is Direction.DONE)

    @property
    def written(self) -> int:
        """Bytes written so far."""
        return self.sent - (self.sending is not Direction.OPEN)

    @property
    def pristine(self) -> bool:
        """Whether nothing that the peer wrote has arrived."""
        return self.receive_window.received == 0

    def since(self, position: int) -> bytes:
        """Return the bytes written from `position` on, of which none may be acknowledged yet."""
        return b"".join(
            data[max(0, position - offset) :] for offset, data in self._kept if offset + len(data) > position
        )

    def write(self, data: bytes) -> int:
        """Send the first `room` bytes of `data`; return how many were taken.

        If not all were taken, a `Writable` event tells when more will be.

        Raises:
            ValueError: the stream's sending side is closed.
        """
        if self.sending is not Direction.OPEN or self.reset_code is not None:
            raise ValueError("the stream's sending side is closed")
        size = len(data)
        # Computed here and not by `room`: this runs once per frame.
        room = self.limit - (self.sent - self.acknowledged)
        if size > room:
            self._blocked = True
            # Negative when the window shrank, after a lost path, below what is in flight.
            if room <= 0:
                return 0
            data = data[:room]
            size = room
        if size:
            offset = self.sent
            self._kept.append((offset, data))
            self.sent = offset + size
            window = self.receive_window
            # Every DATA acknowledges, so that a stream with bytes in both directions needs few ACKs.
            window.acknowledged = consumed = window.consumed
            self._output.send(Frame(DATA, 0, self.sid, offset, consumed, data))
        return size

    def close(self) -> None:
        """End the sending direction; what was written still arrives. Idempotent."""
        if self.sending is Direction.OPEN and self.reset_code is None:
            self.sending = Direction.FIN
            self.sent += 1
            window = self.receive_window
            window.acknowledged = window.consumed
            self._output.send(Frame(DATA, FIN, self.sid, self.sent - 1, window.consumed))

    def reset(self, code: str, text: str = "") -> None:
        """End both directions now; the peer is told why. Idempotent; no event follows on this side."""
        # A closed stream has told the peer how it ended; another reset would contradict that.
        if not self.closed:
            self._owner.end_stream(self, code, text)

    def consume(self, size: int) -> None:
        """Tell that `size` delivered bytes were used, which opens the peer's window again.

        Raises:
            ValueError: more than was delivered.
        """
        window = self.receive_window
        if self.receiving is not Direction.OPEN or self.reset_code is not None:
            self._consume_last(size)
        elif size > window.received - window.consumed:
            raise ValueError("consumed more than was received")
        elif window.consume(size, self._owner.ticks):
            self.acknowledge()
        else:
            self._owner.acknowledge_later(self)

    def _consume_last(self, size: int) -> None:
        """Consume bytes of a peer that sends nothing more, so that there is no window to adjust."""
        if size > self.unread:
            raise ValueError("consumed more than was received")
        self.receive_window.consumed += size
        if self.reset_code is None:
            self.finish_receiving()

    # -- sending, as the mux drives it ----------------------------------------------------------------------------

    def receive_acknowledgement(self, position: int) -> bool:
        """Drop what the peer has consumed up to `position`; whether a writer that waits may go on.

        A position that is old or was never sent changes nothing: to believe it could lose bytes that must be resent.
        """
        if position <= self.acknowledged or position > self.sent:
            return False
        self.acknowledged = position
        kept = self._kept
        # A piece of which a part is acknowledged stays whole; cutting it would copy it.
        while kept and kept[0][0] + len(kept[0][1]) <= position:
            kept.popleft()
        if self.sending is Direction.FIN and position == self.sent:
            self.sending = Direction.DONE
            self._owner.stream_advanced(self)
            return False
        if self._blocked and self.sending is Direction.OPEN:
            self._blocked = False
            return True
        return False

    def receive_last_acknowledgement(self, position: int) -> None:
        """Note what the peer had consumed when it reset the stream, for readers of `acknowledged`."""
        if self.acknowledged < position <= self.sent:
            self.acknowledged = position

    def receive_grant(self, size: int) -> None:
        """Let this end have `size` bytes in flight; a size that no correct peer grants is ignored."""
        # An ACK of the FIN grants 0 bytes, which means nothing: the direction has ended.
        if 0 < size <= self.window * GROWTH:
            self.limit = size

    def resend_from(self, position: int) -> list[Frame]:
        """Return frames with everything that the peer lacks, which has received up to `position`."""
        frames = []
        ack = self.receive_window.consumed
        for offset, data in self._kept:
            end = offset + len(data)
            if end <= position:
                continue
            if offset < position:
                data = data[position - offset :]
                offset = position
            # In smaller pieces than they were written: the new path may be slower.
            for start in range(0, len(data), _SLOW_PIECE):
                frames.append(Frame(DATA, 0, self.sid, offset + start, ack, data[start : start + _SLOW_PIECE]))
        if self.sending is not Direction.OPEN and position < self.sent:
            frames.append(Frame(DATA, FIN, self.sid, self.sent - 1, ack))
        if frames:
            self.receive_window.acknowledged = ack
        return frames

    def resume_frames(self) -> list[Frame]:
        """Return what to send first over a new path: this end's position, or all again from OPEN on.

        The latter while the peer may not have the stream: it would answer a RESUME by a reset.
        """
        if self.confirmed:
            return [self.position(ASK)]
        opening = Frame(OPEN, 0, self.sid, self.window, 0, self._open_payload or b"")
        return [opening, *self.resend_from(0)]

    # -- receiving, as the mux drives it --------------------------------------------------------------------------

    def receive_data(self, frame: Frame) -> bytes | None:
        """Take a DATA frame; return its new bytes.

        They are empty for a bare FIN and for bytes that had come before. None means that bytes before these are
        missing: the frame is dropped, since the peer resends from the gap on.

        Raises:
            OverflowError: the peer wrote beyond the window or after its end.
        """
        offset = frame.offset
        payload = frame.payload
        window = self.receive_window
        expected = window.received
        if offset != expected:
            if offset > expected:
                return None
            skip = expected - offset
            # A FIN takes the position after its payload, so one at `expected` is new though its payload is not.
            if skip > len(payload) or (skip == len(payload) and not frame.flags & FIN):
                return b""
            payload = payload[skip:]
        if self.receiving is not Direction.OPEN:
            raise OverflowError("data after the end")
        received = expected + len(payload)
        if received - window.consumed > window.bound:
            raise OverflowError("data beyond the window")
        if frame.flags & FIN:
            received += 1
            self.receiving = Direction.FIN
        window.received = received
        return payload

    def acknowledge(self) -> None:
        """Tell the peer what was consumed and how much it may have in flight."""
        window = self.receive_window
        window.acknowledged = window.consumed
        self._output.send(Frame(ACK, 0, self.sid, window.granted, window.consumed))

    def finish_receiving(self) -> None:
        """Consume the peer's FIN once its last byte is consumed, and acknowledge it."""
        window = self.receive_window
        if self.receiving is not Direction.FIN or window.consumed < window.received - 1:
            return
        window.consumed = window.acknowledged = window.received
        self.receiving = Direction.DONE
        # Only the peer's `Closed` waits for this, so it may share a message with whatever is sent next.
        self._output.send_late(Frame(ACK, 0, self.sid, 0, window.consumed))
        self._owner.stream_advanced(self)

    def position(self, flags: int = 0) -> Frame:
        """Return a RESUME that tells how far this end got; with `ASK` in `flags` it asks the same of the peer.

        Both windows begin anew, here and at the peer when it reads this: a grant may be lost with the path, so the two
        ends could disagree about it.
        """
        window = self.receive_window
        window.acknowledged = window.consumed
        window.restart()
        self.limit = self.window
        return Frame(RESUME, flags, self.sid, window.received, window.consumed)

    # -- the end --------------------------------------------------------------------------------------------------

    def end(self, code: str | None) -> None:
        """Free what the stream holds; `code` tells why it ended early, None that it did not."""
        self.reset_code = code
        self._kept.clear()
        self.receive_window.end()
