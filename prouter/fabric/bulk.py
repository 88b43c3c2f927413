"""How much of the way each of the streams gets that bring much to a process.

A large window lets one stream keep every process on its way busy, with few wake-ups. Several of them would fill the
queues on the way with far more than that takes, and small requests wait behind it. So windows grow for streams that are
used fast, the most for one that is alone, and shrink when there are more or the stream is not fast any longer.
Processes that share a way, as the workers of a router do, count each other's streams too.

Sizes are multiples of a stream's first window, 256 KiB unless configured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prouter.fabric.stream import Stream

__all__ = ["FAST", "GROWTH", "PLAIN", "Bulk"]

GROWTH = 32
"""How many times its first size the window of a stream may become, in each direction."""
PLAIN = 3
"""How many times that of a stream may become that is not fast, but whose reader keeps up."""
FAST = 2 * PLAIN
"""First windows used between two ticks that make a stream a fast one."""
_TOGETHER = 8
"""First windows that several fast streams share, unless that is less than one each."""
_LARGEST = 8 * 1024 * 1024
"""Bytes that no window grows beyond, however large it was at first."""


def _grown(window: int, times: int) -> int:
    return max(window, min(times * window, _LARGEST))


class Bulk:
    """The fast streams of a process, as their receiving end sees them.

    Attributes:
        elsewhere: how many there are in other processes on the same way.
        on_change: called with their number here when that has become another.
    """

    def __init__(self) -> None:
        self.elsewhere = 0
        self.on_change: Callable[[int], None] = lambda _count: None
        self._streams: dict[Stream, int] = {}
        """With how many bytes each had used at the last tick."""

    def __len__(self) -> int:
        return len(self._streams)

    def share(self, stream: Stream) -> int:
        """Bytes the window of `stream` may have."""
        window = stream.window
        if stream not in self._streams:
            return _grown(window, PLAIN)
        count = len(self._streams) + self.elsewhere
        return _grown(window, GROWTH) if count == 1 else max(window, _grown(window, _TOGETHER) // count)

    def add(self, stream: Stream) -> None:
        """`stream` was fast just now."""
        if stream not in self._streams:
            self._streams[stream] = stream.used
            self.on_change(len(self._streams))

    def discard(self, stream: Stream) -> None:
        """`stream` has ended."""
        if self._streams.pop(stream, None) is not None:
            self.on_change(len(self._streams))

    def tick(self) -> None:
        """To be called some times a second: a stream that used little since is fast no more."""
        streams = {
            stream: stream.used
            for stream, before in self._streams.items()
            if stream.used - before >= stream.window >> 1
        }
        fewer = len(streams) < len(self._streams)
        self._streams = streams
        if fewer:
            self.on_change(len(streams))
