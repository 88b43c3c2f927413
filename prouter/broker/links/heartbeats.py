"""Heartbeats on every path: each is looked at when its session needs attention next.

That moment is rounded up to a multiple of `_GRID`. All paths of one multiple share a timer: with thousands of agents,
timers of their own would take longer than the looks.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.fabric.frames import PING
from prouter.fabric.session import LISTENER_PATIENCE, LOST_AFTER, Lost, SessionState

__all__ = ["Heartbeats"]

_MEASURE = 30.0
"""Seconds between measurements of the round trip."""
_GRID = 0.05
"""Seconds between two looks at paths."""
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
        self._later: dict[int, list[Path]] = {}
        """Paths to look at, by the multiple of `_GRID` at which that is due."""
        self._due: deque[Path] = deque()
        """Paths to look at now."""

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
            # A session that is about to be ready has more patience now than it will have then.
            asks = path.heard + path.session.heartbeat * LISTENER_PATIENCE
            self._look_at(path, min(asks, path.session.deadline()))

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

    def _look_at(self, path: Path, when: float) -> None:
        """Have `_beat` look at a path, at `when` or soon after."""
        multiple = int(when / _GRID) + 1
        later = self._later.get(multiple)
        if later is None:
            self._later[multiple] = [path]
            self._env.timers.at(multiple * _GRID, partial(self._come, multiple))
        else:
            later.append(path)

    def _come(self, multiple: int, now: float) -> None:
        """Look at paths whose time has come, unless a timer does so already."""
        idle = not self._due
        self._due += self._later.pop(multiple)
        if idle:
            self._look(now)

    def _look(self, now: float) -> None:
        """Look at some of the paths that are due. Peers are heard before the others, which may not be silent then."""
        due = self._due
        try:
            for _ in range(min(len(due), self._env.settings.bounds.iteration)):
                self._beat(due.popleft(), now)
        finally:
            if due:
                self._env.timers.at(now, self._look)

    def _beat(self, path: Path, now: float) -> None:
        if path not in self._watched:
            return
        session = path.session
        session.heard(path.heard)
        if self.behind and now - path.heard >= session.heartbeat * LOST_AFTER:
            self._look_at(path, now)
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
            self._look_at(path, deadline)
