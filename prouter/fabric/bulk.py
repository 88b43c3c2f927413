"""How much of the way each of the streams gets that bring much to a process.

A large window lets one stream keep every process on its way busy, with few wake-ups. Several of them would fill the
queues on the way with far more than that takes, and small requests wait behind it. So windows grow for streams that are
used fast, the most for one that is alone, and shrink when there are more or the stream is not fast any longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prouter.fabric.stream import Stream

__all__ = ["GROWTH", "Bulk"]

GROWTH = 8
"""How many times its first size the window of a stream may become, in each direction."""
_TOGETHER = 4
"""First windows that several fast streams share, unless that is less than one each."""


class Bulk:
    """The fast streams of a process, as their receiving end sees them."""

    def __init__(self) -> None:
        self._streams: dict[Stream, int] = {}
        """With how many bytes each had used at the last tick."""

    def __len__(self) -> int:
        return len(self._streams)

    def share(self, stream: Stream) -> int:
        """Bytes the window of `stream` may have."""
        window = stream.window
        if stream not in self._streams:
            return window
        count = len(self._streams)
        return GROWTH * window if count == 1 else max(window, _TOGETHER * window // count)

    def add(self, stream: Stream) -> None:
        """`stream` was fast just now."""
        self._streams.setdefault(stream, stream.used)

    def discard(self, stream: Stream) -> None:
        """`stream` has ended."""
        self._streams.pop(stream, None)

    def tick(self) -> None:
        """To be called about once a second: a stream of which less than a window was used since is fast no more."""
        self._streams = {
            stream: stream.used for stream, before in self._streams.items() if stream.used - before >= stream.window
        }
