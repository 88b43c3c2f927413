"""Control frames that wait for their turn, so that no turn of the loop takes long whatever arrives at once.

A few hundred frames are handled at once; what is beyond waits for the next turns, each peer's in order, the peers one
after another. Large frames and expensive questions count for many.
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
"""Frames of one peer before the next gets its turn."""
_BYTES = 4096
"""Bytes of a frame that count like one more frame."""


class Inbox:
    """See the module's docstring.

    Args:
        handle: carries one frame out; its ProtocolError is reported to `malformed`.
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
        """Handle the frames of a message, now as far as there is time."""
        if now > self._reset_at:
            self._reset(now)
        waiting = self._waiting.get(path)
        if waiting is not None:
            waiting.extend(frames)
            return
        rest = deque(frames)
        self._work(path, rest, len(rest), now)
        if rest:
            self._waiting[path] = rest
            self._go_on(now)

    def turn(self, now: float) -> None:
        """A new turn of the loop: go on with what waits."""
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
        """Run `action` once all that the peer has said so far is handled: at once if nothing waits."""
        if path in self._waiting:
            self._last[path] = action
        else:
            action(now)

    def _work(self, path: Path, frames: deque[Frame], most: int, now: float) -> None:
        while frames and most > 0 and self._env.budget > 0:
            most -= 1
            frame = frames.popleft()
            self._env.budget -= 1 + len(frame.payload) // _BYTES
            self._carry_out(path, frame, now)

    def _carry_out(self, path: Path, frame: Frame, now: float) -> None:
        if path.session.state is SessionState.LOST:
            return
        try:
            self._handle(path, frame, now)
        except ProtocolError as error:
            self._malformed(path, error)

    def _reset(self, now: float) -> None:
        self._reset_at = now
        self._env.budget = self._env.settings.bounds.turn

    def _go_on(self, now: float) -> None:
        """Do not let the loop sleep while something waits."""
        if self._waiting:
            self._env.timers.at(now, _nothing)


def _nothing(now: float) -> None:
    """`Inbox.turn` does the work."""
