"""One end of a stream: an ordered, flow-controlled, resumable byte channel in both directions.

Each direction counts bytes from 0; its end (FIN) takes one position of its own after the last byte, so that its
arrival can be acknowledged like a byte's. What a direction knows::

    sender:    acked ≤ sent                     bytes in [acked, sent) are kept for repetition, at most a window
    receiver:  told ≤ consumed ≤ received       `received` is the next position expected, `told` the last ack given

State of a direction, as `Stream` sees it (a reset from either side ends both directions at once)::

    sending    OPEN --close()--> FIN_SENT --ack covers FIN--> DONE
    receiving  OPEN --FIN arrives in order--> FIN_RECEIVED --all consumed--> DONE

The stream is closed when both are DONE.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from prouter.fabric.bulk import FAST, GROWTH, PLAIN
from prouter.fabric.frames import ACK, ASK, DATA, FIN, OPEN, RESUME, Frame

if TYPE_CHECKING:
    from prouter.fabric.mux import Mux

__all__ = ["MAX_PIECE", "Direction", "Stream"]

MAX_PIECE = 1024 * 1024
"""Most bytes that are best written at once."""
_MODEST = 256 * 1024
"""Most bytes of a frame where the path may be slow: while a larger one is under way, the path may be taken for dead."""


class Direction(Enum):
    """State of one direction; see the module's docstring."""

    OPEN = "open"
    FIN = "fin"
    DONE = "done"


class Stream:
    """One end of a stream; made by `Mux.open` or by an arriving OPEN, never directly.

    Attributes:
        sid: stream id, unique between two peers.
        window: most bytes in flight in either direction to begin with; it grows where that is what limits a stream.
        handler: free for whoever drives the stream.
        most: bytes of the largest window to grant. A reader to whom what comes takes long lowers it, and gets small
            pieces.
    """

    __slots__ = (
        "_acked",
        "_answered",
        "_asked",
        "_blocked",
        "_confirmed",
        "_consumed",
        "_counted_from",
        "_counted_in",
        "_granted",
        "_kept",
        "_limit",
        "_mux",
        "_open_payload",
        "_received",
        "_repeated",
        "_sent",
        "_told",
        "_wasted",
        "handler",
        "most",
        "receiving",
        "reset_code",
        "sending",
        "sid",
        "window",
    )

    def __init__(self, mux: Mux, sid: int, window: int, open_payload: bytes | None) -> None:
        self._mux = mux
        self.sid = sid
        self.window = window
        self._limit = window
        """Bytes this end may have in flight."""
        self._granted = window
        """Bytes the other end may have in flight."""
        self._counted_in = mux.ticks
        """The tick since which is counted how much of the other end's bytes is used, from here:"""
        self._counted_from = 0
        self.handler: Any = None
        self.most = GROWTH * window
        self.sending = Direction.OPEN
        self.receiving = Direction.OPEN
        self.reset_code: str | None = None
        self._open_payload = open_payload
        self._confirmed = open_payload is None
        self._kept: deque[tuple[int, bytes]] = deque()
        self._acked = 0
        self._sent = 0
        self._blocked = False
        self._received = 0
        self._consumed = 0
        self._told = 0
        self._repeated: int | None = None
        self._asked = False
        """Whether the other end had something repeated since this end's path came up."""
        self._answered = -1
        """The mux's round in which a RESUME that asks was answered last."""
        self._wasted = 0
        """Bytes of no use that came since this end's path came up."""

    # -- what the application does ------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes `write` takes now."""
        if self.sending is not Direction.OPEN or self.reset_code is not None:
            return 0
        return self._limit - (self._sent - self._acked)

    @property
    def piece(self) -> int:
        """Bytes to `write` at once where much is to be written: the larger, the fewer wake-ups it costs on its way.

        Two of them are under way at least, so that neither end waits for the other.
        """
        limit = self._limit
        return min(limit >> 1, MAX_PIECE if limit > PLAIN * self.window else _MODEST)

    def ask_room(self) -> int:
        """Like `room`; when there is none, a `Writable` event tells when there is."""
        room = self.room
        if room <= 0 and self.sending is Direction.OPEN:
            self._blocked = True
        return room

    @property
    def used(self) -> int:
        """How many of the other end's bytes were used."""
        return self._consumed

    @property
    def unread(self) -> int:
        """Bytes delivered and not yet consumed."""
        return self._received - self._consumed - (self.receiving is Direction.FIN)

    @property
    def delivered(self) -> bool:
        """Whether the peer has consumed everything written so far."""
        return self._acked == self._sent

    @property
    def closed(self) -> bool:
        """Whether nothing more will happen: reset, or both directions done."""
        return self.reset_code is not None or (self.sending is Direction.DONE and self.receiving is Direction.DONE)

    @property
    def written(self) -> int:
        """How many bytes were written."""
        return self._sent - (self.sending is not Direction.OPEN)

    @property
    def acknowledged(self) -> int:
        """How many of them the other end had consumed when it sent the last frame that arrived."""
        return self._acked

    def since(self, position: int) -> bytes:
        """What was written from `position` on; that must not be acknowledged yet."""
        return b"".join(
            data[max(0, position - offset) :] for offset, data in self._kept if offset + len(data) > position
        )

    @property
    def pristine(self) -> bool:
        """Whether nothing of the other side's writing has arrived."""
        return self._received == 0

    def write(self, data: bytes) -> int:
        """Send the first `room` bytes of `data`; the number taken.

        When not all are taken, a `Writable` event tells when more will be.

        Raises:
            ValueError: the stream's sending side is closed.
        """
        if self.sending is not Direction.OPEN or self.reset_code is not None:
            raise ValueError("the stream's sending side is closed")
        size = len(data)
        room = self._limit - (self._sent - self._acked)
        if size > room:
            self._blocked = True
            if room <= 0:
                return 0
            data = data[:room]
            size = room
        if size:
            offset = self._sent
            self._kept.append((offset, data))
            self._sent = offset + size
            self._told = self._consumed
            self._mux._send(Frame(DATA, 0, self.sid, offset, self._consumed, data))
        return size

    def close(self) -> None:
        """End the sending direction; what was written still arrives. Idempotent."""
        if self.sending is not Direction.OPEN or self.reset_code is not None:
            return
        self.sending = Direction.FIN
        offset = self._sent
        self._sent = offset + 1
        self._told = self._consumed
        self._mux._send(Frame(DATA, FIN, self.sid, offset, self._consumed))

    def reset(self, code: str, text: str = "") -> None:
        """End both directions now; the peer is told why. Idempotent; no event follows on this side."""
        if not self.closed:
            self._mux._reset(self, code, text)

    def consume(self, size: int) -> None:
        """Tell that `size` delivered bytes were used, which opens the peer's window again.

        Raises:
            ValueError: more than was delivered.
        """
        if size > self._received - self._consumed:
            raise ValueError("consumed more than was received")
        self._consumed += size
        if self.reset_code is not None:
            return
        if self.receiving is Direction.FIN:
            self._finish_receiving()
        elif self._consumed - self._told >= self._granted >> 2:
            self._regrant()
            self._acknowledge()
        else:
            self._mux._ack_due[self.sid] = self

    # -- what the mux does --------------------------------------------------------------------------------------

    def _regrant(self) -> None:
        """Change the window: larger where all that comes is used at once, for then it is what holds the other end back.

        Up to three first windows it doubles whenever two of its size were used. What the buffers behind a slow reader
        take at the beginning is no sign of a fast one, and on a slow path a larger window would only make a longer
        queue: beyond that, two whole windows have to be used between two ticks, and so much that the stream is fast.
        """
        mux = self._mux
        consumed = self._consumed
        granted = self._granted
        if self._counted_in != mux.ticks:
            self._counted_in, self._counted_from = mux.ticks, self._told
        if self._received - consumed < granted >> 1 and self.receiving is Direction.OPEN:
            if consumed - self._counted_from >= max(2 * granted, FAST * self.window):
                self._counted_from = consumed
                mux.bulk.add(self)
                granted *= 2
            elif granted < PLAIN * self.window and consumed >= 4 * granted - 2 * self.window:
                granted *= 2
        self._granted = min(granted, mux.bulk.share(self), self.most)

    def _acknowledge(self) -> None:
        self._told = self._consumed
        self._mux._send(Frame(ACK, 0, self.sid, self._granted, self._consumed))

    def _finish_receiving(self) -> bool:
        """Once the peer's last byte is consumed, consume its FIN and say so, with what else is to be said by then."""
        if self.receiving is not Direction.FIN or self._consumed < self._received - 1:
            return False
        self._consumed = self._received
        self.receiving = Direction.DONE
        self._told = self._consumed
        self._mux._send_late(Frame(ACK, 0, self.sid, 0, self._consumed))
        self._mux._check_closed(self)
        return True

    def _on_ack(self, ack: int) -> bool:
        """Drop what the peer has consumed; whether a blocked writer may go on.

        Returns False, and changes nothing, for an ack that is old or covers what was never sent.
        """
        if ack <= self._acked or ack > self._sent:
            return False
        self._acked = ack
        kept = self._kept
        while kept and kept[0][0] + len(kept[0][1]) <= ack:
            kept.popleft()
        if self.sending is Direction.FIN and ack == self._sent:
            self.sending = Direction.DONE
            self._mux._check_closed(self)
            return False
        if self._blocked and self.sending is Direction.OPEN:
            self._blocked = False
            return True
        return False

    def _on_last_ack(self, ack: int) -> None:
        """What the peer had consumed when it reset the stream: for `acknowledged` alone, nothing else follows."""
        if self._acked < ack <= self._sent:
            self._acked = ack

    def _on_data(self, frame: Frame) -> bytes | None:
        """The new bytes of a DATA frame: empty for a bare FIN or a repetition, None when a gap came before it.

        Raises:
            OverflowError: the peer wrote beyond the window or after its end.
        """
        offset = frame.offset
        payload = frame.payload
        expected = self._received
        if offset != expected:
            if offset > expected:
                return None
            skip = expected - offset
            if skip > len(payload) or (skip == len(payload) and not frame.flags & FIN):
                return b""
            payload = payload[skip:]
        if self.receiving is not Direction.OPEN:
            if payload:
                raise OverflowError("data after the end")
            return b""
        received = expected + len(payload)
        # Not only what this end granted: what comes late may obey the grant of one that was here before it.
        if received - self._consumed > self.window * GROWTH:
            raise OverflowError("data beyond the window")
        self._received = received
        if frame.flags & FIN:
            self._received += 1
            self.receiving = Direction.FIN
        return payload

    def _position(self, flags: int = 0) -> Frame:
        """How far this end got. Windows are the first ones again: a grant may be lost, and the path be slower now."""
        self._told = self._consumed
        self._granted = self._limit = self.window
        return Frame(RESUME, flags, self.sid, self._received, self._consumed)

    def _resume_frames(self) -> list[Frame]:
        """What to say when the path is back: everything again while nobody confirmed the OPEN, else how far we got."""
        if self._confirmed:
            return [self._position(ASK)]
        opening = Frame(OPEN, 0, self.sid, self.window, 0, self._open_payload or b"")
        return [opening, *self._repeat_from(0)]

    def _repeat_from(self, position: int) -> list[Frame]:
        """Everything the peer lacks, given that it has received up to `position`."""
        frames = []
        ack = self._consumed
        for offset, data in self._kept:
            end = offset + len(data)
            if end <= position:
                continue
            if offset < position:
                data = data[position - offset :]
                offset = position
            for start in range(0, len(data), _MODEST):
                frames.append(Frame(DATA, 0, self.sid, offset + start, ack, data[start : start + _MODEST]))
        if self.sending is not Direction.OPEN and position < self._sent:
            frames.append(Frame(DATA, FIN, self.sid, self._sent - 1, ack))
        if frames:
            self._told = ack
        return frames
