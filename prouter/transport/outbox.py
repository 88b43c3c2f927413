"""Frames on their way out: collected during an event loop iteration and sent in few messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prouter.fabric.frames import Frame, batches, encode
from prouter.fabric.mux import Mux
from prouter.transport.runtime import Runtime

__all__ = ["Outbox", "Send"]

_LATE = 0.003
"""Seconds that the acknowledgement of a stream's end waits for other frames to leave with. Alone it would wake three
processes up for nothing that anybody waits for."""

Send = Callable[[Sequence[bytes]], bool]
"""Sends one message, ``[route, block, bulk…]``; whether the path took it."""


class Outbox:
    """Sends the frames of one peer, at the end of each event loop iteration.

    What a message costs hardly depends on its size: each wakes the receiving process up. So all frames of an iteration
    for one destination share as few messages as possible.

    Args:
        before_flush: called before frames leave.
    """

    def __init__(self, runtime: Runtime, before_flush: Callable[[], None]) -> None:
        self._runtime = runtime
        self._before_flush = before_flush
        self._send: Send | None = None
        self._control: list[Frame] = []
        """Frames for the neighbour itself: session, calls, events."""
        self._muxes: list[Mux] = []
        """Muxes with frames to send."""
        self._late: list[Mux] = []
        """Muxes whose frames may wait for others."""
        self._scheduled = False

    def attach(self, send: Send) -> None:
        """Send over this path from now on."""
        self._send = send

    def detach(self) -> None:
        """Drop frames for the neighbour until there is a path again; sessions and calls resend what matters."""
        self._send = None
        self._control.clear()

    def say(self, *frames: Frame) -> None:
        """Queue frames for the neighbour itself; without a path they are dropped."""
        if frames and self._send is not None:
            self._control.extend(frames)
            self._schedule()

    def add(self, mux: Mux) -> None:
        """Take the frames of `mux` at the end of this event loop iteration."""
        self._muxes.append(mux)
        self._schedule()

    def add_late(self, mux: Mux) -> None:
        """Take the frames of `mux` within a few milliseconds, or earlier with others."""
        self._late.append(mux)
        if len(self._late) == 1:
            self._runtime.later(_LATE, self._flush_late)

    def flush(self) -> None:
        """Send everything that is queued now."""
        self._before_flush()
        send = self._send
        control, self._control = self._control, []
        muxes, self._muxes = self._muxes, []
        if send is None:
            return
        # Control frames first: a heartbeat must not wait for the streams' bytes.
        for frames in batches(control):
            send([b"", *encode(frames)])
        for mux in muxes:
            for frames in batches(mux.take()):
                send([mux.tag, *encode(frames)])

    def _flush_late(self) -> None:
        late, self._late = self._late, []
        # Those that have left with other frames meanwhile have nothing more to take.
        self._muxes += late
        self.flush()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._runtime.soon(self._flush_scheduled)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()
