"""Resumption of streams over a new path: who tells what, and what is resent.

When a path comes up, each end tells for each of its streams up to which position it has received (RESUME), and the
other end resends what lies beyond. Each also sends its roster, the ids of all its streams, as a RESUME of stream 0:

* A RESUME with ASK is answered by one without. So one end that noticed the loss is enough.
* Both ends may notice the loss and ask. Each then resends because of the other's question, and does not resend the same
  because of the answer to its own question.
* The receiver of a roster resumes its own streams that the roster lacks: they were never opened there, or have ended.
* A gap, that is DATA beyond the position expected, is answered by a RESUME, once for each gap.

A peer could make this end resend without limit. So what it asks for a second time over one path counts as a stray, with
the bytes that are resent; above a limit it is not answered any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from prouter.fabric.frames import ASK, RESUME, Frame
from prouter.fabric.output import Output
from prouter.fabric.payloads import pack_roster, process_number, unpack_roster
from prouter.fabric.strays import Strays
from prouter.fabric.stream import Stream
from prouter.fabric.windows import GROWTH

__all__ = ["Resumption"]


class Resumption:
    """Resumes the streams of one mux.

    Args:
        output: takes the frames to send.
        strays: counts what the peer asks for more often than a correct one does.
    """

    __slots__ = ("_asking", "_gaps", "_had_roster", "_output", "_strays")

    def __init__(self, output: Output, strays: Strays) -> None:
        self._output = output
        self._strays = strays
        self._had_roster = False
        """Whether the peer sent its roster over the present path."""
        self._gaps: dict[int, int] = {}
        """For each stream with a gap: the position that the peer was told because of it."""
        self._asking: set[int] = set()
        """Streams of which the peer has not answered this end's question over the present path."""

    def begin(self, streams: Collection[Stream], process: str) -> None:
        """Resume all streams over a path that has just come up.

        Args:
            process: the process at the other end that the frames are meant for, empty for any.
        """
        self._had_roster = False
        self._gaps.clear()
        self._asking.clear()
        roster = pack_roster(stream.sid for stream in streams)
        # The first frame, because its receiver drops all that comes before it knows that it is meant.
        self._output.send(Frame(RESUME, offset=process_number(process), payload=roster))
        for stream in streams:
            self._resume(stream, free=True)

    def receive_roster(self, frame: Frame, streams: Iterable[Stream]) -> None:
        """Resume those of `streams` that the peer's roster lacks.

        Raises:
            ProtocolError: the roster is malformed.
        """
        # To read a roster costs a look-up for each stream of either end.
        if self._strays.too_many:
            return
        theirs = unpack_roster(frame.payload)
        free, self._had_roster = not self._had_roster, True
        for stream in streams:
            if stream.sid not in theirs:
                self._resume(stream, free=free)

    def receive_position(self, stream: Stream, frame: Frame) -> None:
        """Resend what the peer lacks according to its RESUME, and answer it if it asks."""
        if frame.flags & ASK:
            # While the answer to an earlier question has not left, it answers this one, too.
            if stream.asked_at == self._output.departures or self._strays.too_many:
                return
            stream.asked_at = self._output.departures
            self._output.send(stream.position())
        elif stream.sid in self._asking:
            self._asking.remove(stream.sid)
            if stream.resent_from is not None and frame.offset >= stream.resent_from:
                # The answer to this end's question, but the peer asked as well and was resent all of this then.
                return
        stream.resent_from = frame.offset
        # The first time over a path is due; a peer that asks again makes this end send the same bytes twice.
        free, stream.resent_before = not stream.resent_before, True
        self._resend(stream.resend_from(frame.offset), free=free)

    def receive_open_again(self, stream: Stream) -> None:
        """Answer an OPEN of a stream that is known: its opener has heard nothing of it yet, whatever was sent."""
        self._output.send(stream.position())
        stream.resent_from = 0
        # Not counted here: the mux counts the repeated OPEN, and no path of a correct peer brings many.
        for frame in stream.resend_from(0):
            self._output.send(frame)

    def receive_gap(self, stream: Stream) -> None:
        """Tell the peer from where on bytes are missing.

        All frames after a lost one show the same gap. To answer each would have everything resent as often.
        """
        received = stream.receive_window.received
        if self._gaps.get(stream.sid) != received:
            self._gaps[stream.sid] = received
            self._output.send(stream.position())

    def receive_useless(self, stream: Stream, size: int) -> None:
        """Count `size` bytes that had come before, or beyond a gap.

        As many as may be in flight, in both directions' largest windows, come for good reasons over one path.
        """
        stream.useless += size
        if stream.useless > 2 * GROWTH * stream.window:
            self._strays.add(size)

    def forget(self, sid: int) -> None:
        """Forget a stream that has ended."""
        self._gaps.pop(sid, None)
        self._asking.discard(sid)

    def _resume(self, stream: Stream, *, free: bool) -> None:
        """Send how far `stream` got and ask the peer the same, or open it again if the peer may not have it.

        Args:
            free: whether this is due, so that it does not count against the peer.
        """
        stream.resent_from = None
        if stream.confirmed:
            self._asking.add(stream.sid)
        if free:
            stream.useless = 0
            stream.resent_before = False
        self._resend(stream.resume_frames(), free=free)

    def _resend(self, frames: Iterable[Frame], *, free: bool) -> None:
        for frame in frames:
            if not free:
                self._strays.add(len(frame.payload))
            self._output.send(frame)
