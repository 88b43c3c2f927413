"""A queue of control frames, so that no event loop iteration takes long, whatever arrives at once.

One iteration handles a bounded number of frames. The others wait for the next iterations: the frames of each peer in
their order, the peers in turn. Large frames and expensive calls count several times.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.errors import ProtocolError
from prouter.fabric.frames import Frame
from prouter.fabric.session import SessionState

__all__ = ["Inbox"]

_SHARE = 32
"""Frames of one peer that are handled before the next peer has its turn."""
_BYTES = 4096
"""Bytes of a payload that count as one more frame."""


class Inbox:
    """The queue of all peers.

    Args:
        handle: handles one frame.
        malformed: is told of each `ProtocolError` that `handle` raises.
    """

    def __init__(
        self,
        env: Env,
        handle: Callable[[Path, Frame, float], None],
        malformed: Callable[[Path, ProtocolError], None],
    ) -> None:
        self._env = env
        self._handle = handle
        self._malformed = malformed
        self._waiting: OrderedDict[Path, deque[Frame]] = OrderedDict()
        self._last: dict[Path, Callable[[float], None]] = {}
        self._reset_at = float("-inf")

    def __len__(self) -> int:
        return sum(len(frames) for frames in self._waiting.values())

    def receive(self, path: Path, frames: list[Frame], now: float) -> None:
        """Handle the frames of a message, as many of them now as the iteration's budget allows."""
        if now > self._reset_at:
            self._reset(now)
        waiting = self._waiting.get(path)
        if waiting is not None:
            waiting.extend(frames)
            return
        for index, frame in enumerate(frames):
            if self._env.budget <= 0:
                self._waiting[path] = deque(frames[index:])
                self._go_on(now)
                return
            self._take(path, frame, now)

    def iterate(self, now: float) -> None:
        """Go on with the queue in a new event loop iteration."""
        self._reset(now)
        while self._waiting and self._env.budget > 0:
            path, frames = self._waiting.popitem(last=False)
            self._work(path, frames, _SHARE, now)
            if frames:
                self._waiting[path] = frames
            elif path in self._last:
                self._last.pop(path)(now)
        self._go_on(now)

    def after(self, path: Path, action: Callable[[float], None], now: float) -> None:
        """Run ``action(now)`` once every frame that the peer has sent so far is handled, at once if none waits."""
        if path in self._waiting:
            self._last[path] = action
        else:
            action(now)

    def _work(self, path: Path, frames: deque[Frame], most: int, now: float) -> None:
        while frames and most > 0 and self._env.budget > 0:
            most -= 1
            self._take(path, frames.popleft(), now)

    def _take(self, path: Path, frame: Frame, now: float) -> None:
        self._env.budget -= 1 + len(frame.payload) // _BYTES
        if path.session.state is SessionState.LOST:
            return
        try:
            self._handle(path, frame, now)
        except ProtocolError as error:
            self._malformed(path, error)

    def _reset(self, now: float) -> None:
        self._reset_at = now
        self._env.budget = self._env.settings.bounds.iteration

    def _go_on(self, now: float) -> None:
        """Keep the event loop from sleeping while frames wait."""
        if self._waiting:
            self._env.timers.at(now, _nothing)


def _nothing(now: float) -> None:
    """A timer that only wakes the loop; `Inbox.iterate` does the work."""
