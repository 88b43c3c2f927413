"""Frames that wait to leave for one peer."""

from __future__ import annotations

from collections.abc import Callable

from prouter.fabric.frames import Frame

__all__ = ["Output"]


class Output:
    """The queue of frames for one peer.

    While the path is down nothing is queued: streams keep what the peer has not acknowledged and resend it over the
    next path, so a queue would only send it twice.

    Args:
        on_frames: called when a frame is queued that should leave in this event loop iteration, once until `take`.
        on_late_frames: called when the queue gets its first frame and that frame may wait a few milliseconds for
            company. `on_frames` still follows if a frame that may not wait is queued meanwhile.

    Attributes:
        up: whether there is a path.
        departures: how often the queue was emptied; tells whether a frame queued earlier has left.
    """

    __slots__ = ("_announced", "_frames", "_on_frames", "_on_late_frames", "departures", "up")

    def __init__(self, on_frames: Callable[[], None], on_late_frames: Callable[[], None]) -> None:
        self.up = False
        self.departures = 0
        self._frames: list[Frame] = []
        self._announced = False
        self._on_frames = on_frames
        self._on_late_frames = on_late_frames

    def send(self, frame: Frame) -> None:
        """Queue a frame; without a path it is dropped."""
        if not self.up:
            return
        self._frames.append(frame)
        if not self._announced:
            self._announced = True
            self._on_frames()

    def send_late(self, frame: Frame) -> None:
        """Queue a frame that may wait for others to share a message with; without a path it is dropped."""
        if not self.up:
            return
        self._frames.append(frame)
        # `_announced` stays as it is: a frame that may not wait has to be announced on its own.
        if len(self._frames) == 1:
            self._on_late_frames()

    def take(self) -> list[Frame]:
        """Remove and return the queued frames, in order."""
        frames = self._frames
        self._frames = []
        self.departures += 1
        self._announced = False
        return frames

    def drop(self) -> None:
        """Forget the queued frames; they were meant for a path that is gone."""
        self._frames.clear()
        self.departures += 1
        self._announced = False
