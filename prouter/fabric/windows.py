"""Receive windows: how many bytes a peer may have in flight on a stream, and who decides.

The receiving end decides, because it sees how fast bytes are consumed and which other streams it receives. A large
window keeps every process between the two ends busy with few wake-ups. Several large windows at once fill the queues in
between, and small requests wait behind them. So a window starts small, grows while its stream is fast, the most for a
stream that is alone, and shrinks when other fast streams appear or its own stream slows down. Workers of one router
share these queues; each counts the fast streams of the others too (`Bulk.elsewhere`).

`docs/decisions/windows.md` gives the measurements behind the numbers. Sizes are multiples of a stream's first window,
which is 256 KiB unless configured.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FAST", "GROWTH", "PLAIN", "Bulk", "ReceiveWindow"]

GROWTH = 32
"""First windows that the window of a fast stream may grow to, in each direction."""
PLAIN = 3
"""First windows that the window of any other stream may grow to while its reader keeps up."""
FAST = 2 * PLAIN
"""First windows that a stream consumes between two ticks of its mux to count as fast."""
_TOGETHER = 8
"""First windows that several fast streams share, unless that is less than one each."""
_LARGEST = 8 * 1024 * 1024
"""Bytes that no window grows beyond, however large its first size is."""


def _grown(first: int, times: int) -> int:
    """Return `times` first windows, at most `_LARGEST` bytes; a first window that is larger already stays as it is."""
    return max(first, min(times * first, _LARGEST))


class ReceiveWindow:
    """What one end of a stream has received and consumed, and how much more the peer may send.

    Positions count the peer's bytes from 0; the peer's FIN takes one position after the last byte. Always
    ``acknowledged <= consumed <= received``.

    Args:
        first: bytes of the window to begin with.
        bulk: the fast streams of this process.

    Attributes:
        first: as given.
        received: the next position expected from the peer.
        consumed: the position up to which the application has used what arrived.
        acknowledged: the value of `consumed` that the peer was told last.
        granted: bytes that the peer may have in flight beyond `consumed`, as it was told last.
        most: bytes that `granted` never exceeds.
        bound: bytes beyond `consumed` that no correct peer exceeds. That is not `granted`: after a lost path this end
            grants the first window again, while bytes that obey an earlier, larger grant are still on their way.
    """

    __slots__ = (
        "_bulk",
        "_measured_from",
        "_measured_in",
        "acknowledged",
        "bound",
        "consumed",
        "first",
        "granted",
        "most",
        "received",
    )

    def __init__(self, first: int, bulk: Bulk) -> None:
        self.first = first
        self.received = 0
        self.consumed = 0
        self.acknowledged = 0
        self.granted = first
        self.most = self.bound = GROWTH * first
        self._bulk = bulk
        self._measured_in = 0
        """The tick in which the present measurement of the stream's speed began, and at which position:"""
        self._measured_from = 0

    def consume(self, size: int, tick: int) -> bool:
        """Count `size` bytes as consumed; whether the peer should hear of it now rather than with the next tick.

        A quarter of the window is often enough that a fast sender never stands still, and seldom enough that
        acknowledgements cost little beside the data.

        Args:
            tick: how many ticks the stream's mux has seen, about one a second.
        """
        self.consumed = consumed = self.consumed + size
        if consumed - self.acknowledged < self.granted >> 2:
            return False
        self._adjust(tick)
        return True

    def _adjust(self, tick: int) -> None:
        """Grow or shrink the window by how fast the stream was lately.

        A window is what holds its sender back only if the reader consumes all that comes at once. Up to `PLAIN` first
        windows it doubles each time two of its size were consumed. The buffers behind a slow reader swallow that much
        at the beginning, which does not make the reader fast; and on a slow path a larger window only makes a longer
        queue. So beyond that size, two whole windows must be consumed between two ticks, and `FAST` first windows at
        least.
        """
        consumed, granted, first = self.consumed, self.granted, self.first
        # A new tick begins a new measurement, from the last acknowledgement on.
        if self._measured_in != tick:
            self._measured_in, self._measured_from = tick, self.acknowledged
        if self.received - consumed < granted >> 1:
            if consumed - self._measured_from >= max(2 * granted, FAST * first):
                self._measured_from = consumed
                self._bulk.add(self)
                granted *= 2
            # Each size so far was consumed twice: 2 * (first + 2 * first + ... + granted) = 4 * granted - 2 * first.
            elif granted < PLAIN * first and consumed >= 4 * granted - 2 * first:
                granted *= 2
        self.granted = min(granted, self._bulk.share(self), self.most)

    def restart(self) -> None:
        """Begin with the first window again, after a lost path: the grant may be lost, and the new path slower."""
        self.granted = self.first

    def end(self) -> None:
        """Give this window's share back; its stream has ended."""
        self._bulk.discard(self)


class Bulk:
    """The windows of this process's fast streams, which share what is in flight.

    Attributes:
        elsewhere: how many fast streams other processes have on the same path.
        on_change: called with the number of fast streams here whenever that changes.
    """

    def __init__(self) -> None:
        self.elsewhere = 0
        self.on_change: Callable[[int], None] = lambda _count: None
        self._windows: dict[ReceiveWindow, int] = {}
        """Every fast stream's window, with its `consumed` at the last tick."""

    def __len__(self) -> int:
        return len(self._windows)

    def share(self, window: ReceiveWindow) -> int:
        """Return how many bytes `window` may grant."""
        first = window.first
        if window not in self._windows:
            return _grown(first, PLAIN)
        count = len(self._windows) + self.elsewhere
        # A first window is the floor: with less, one round trip per few KiB would decide the speed.
        return _grown(first, GROWTH) if count == 1 else max(first, _grown(first, _TOGETHER) // count)

    def add(self, window: ReceiveWindow) -> None:
        """Count the stream of `window` as fast from now on."""
        if window not in self._windows:
            self._windows[window] = window.consumed
            self.on_change(len(self._windows))

    def discard(self, window: ReceiveWindow) -> None:
        """Count the stream of `window` no longer. Idempotent."""
        if self._windows.pop(window, None) is not None:
            self.on_change(len(self._windows))

    def tick(self) -> None:
        """Drop streams that consumed less than half a first window since the last tick; call a few times a second."""
        windows = {
            window: window.consumed
            for window, before in self._windows.items()
            if window.consumed - before >= window.first >> 1
        }
        fewer = len(windows) < len(self._windows)
        self._windows = windows
        if fewer:
            self.on_change(len(windows))
