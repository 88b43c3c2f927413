"""Heartbeats on every path: one timer per path, set to the time at which its session needs attention next."""

from __future__ import annotations

from functools import partial

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.fabric.frames import PING
from prouter.fabric.session import LOST_AFTER, Lost, SessionState

__all__ = ["Heartbeats"]

_MEASURE = 30.0
"""Seconds between measurements of the round trip."""
_GRID = 0.05
"""Timers are rounded up to multiples of these seconds, so that many run in one event loop iteration."""
_NEVER = float("inf")


class Heartbeats:
    """Heartbeats of all peers.

    Attributes:
        behind: whether messages of peers may have arrived that the event loop has not read yet.
    """

    def __init__(self, env: Env) -> None:
        self.behind = False
        self._env = env
        self._watched: set[Path] = set()

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def pace(self) -> float:
        """Seconds between heartbeats that agents are to keep; 0 while they are few enough for their own."""
        seconds = len(self._watched) / self._env.settings.bounds.heartbeats
        return seconds if seconds > self._env.settings.heartbeat else 0.0

    def watch(self, path: Path) -> None:
        """Send and expect heartbeats on `path` until its session ends or `drop` is called."""
        if path not in self._watched:
            self._watched.add(path)
            self._env.timers.at(path.session.deadline(), partial(self._beat, path))

    def drop(self, path: Path) -> None:
        """End the session of a path that is not used any more."""
        self._watched.discard(path)
        path.session.state = SessionState.LOST

    def forgive(self, now: float) -> None:
        """Ignore the silence of all peers so far: this process itself stood still."""
        for path in self._watched:
            path.heard = now

    def excuse(self, seconds: float, now: float) -> None:
        """Take so many seconds, in which this process did not listen, off the silence of all peers."""
        for path in self._watched:
            path.heard = min(now, path.heard + seconds)

    def _beat(self, path: Path, now: float) -> None:
        if path not in self._watched:
            return
        session = path.session
        session.heard(path.heard)
        if self.behind and now - path.heard >= session.heartbeat * LOST_AFTER:
            self._env.timers.at(now + _GRID, partial(self._beat, path))
            return
        frames, event = session.tick(now)
        if frames:
            if frames[0].type == PING:
                path.measured = now
            self._env.outbox.say(path, *frames)
        if isinstance(event, Lost):
            self._watched.discard(path)
            if path.owner is not None:
                path.owner.lost(path, event.reason, now, closed=False)
            return
        if session.state is SessionState.READY and now - path.measured >= _MEASURE:
            path.measured = now
            self._env.outbox.say(path, session.ping(now))
        deadline = session.deadline()
        if deadline == _NEVER:
            self._watched.discard(path)
        else:
            self._env.timers.at((deadline // _GRID + 1) * _GRID, partial(self._beat, path))
