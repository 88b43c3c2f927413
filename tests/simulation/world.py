"""Virtual time and a virtual network, with one seeded random generator.

A wire behaves like a ZeroMQ connection over TCP: messages arrive in order and once. When the wire is cut, everything
that has not arrived is lost, in both directions. Its ends notice the cut at once (a reset) or not at all (dropped
packets).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Runtime", "Violation", "Wire", "World"]

Message = list[bytes]


class Violation(AssertionError):
    """A promise was broken."""


class World:
    """The clock, what is due, and the random generator.

    Attributes:
        now: seconds of a monotonic clock.
        wall: seconds since the epoch; they jump.
        trace: what happened, for a seed that fails; None when not traced.
        calm: whether faults are over, and nothing takes long any more.
        broken: promises that were broken.
    """

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.wall_offset = 1.7e9
        self.trace: list[str] | None = [] if tracing else None
        self.calm = False
        self.broken: list[str] = []
        self.opened: set[tuple[bytes, int]] = set()
        """Streams that workers opened at agents: the worker's route and the stream's id."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def wall(self) -> float:
        return self.wall_offset + self.now

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` in `delay` seconds."""
        self._count += 1
        heapq.heappush(self._due, (self.now + delay, self._count, action))

    def run_until(self, end: float) -> None:
        """Do everything that is due until `end`."""
        due = self._due
        while due and due[0][0] <= end:
            at, _, action = heapq.heappop(due)
            self.now = max(self.now, at)
            action()
        self.now = end

    def uid(self) -> str:
        """Return 32 random hexadecimal digits."""
        return f"{self.random.getrandbits(128):032x}"

    def fail(self, text: str) -> None:
        """Report a broken promise where an exception would be caught."""
        self.note(f"VIOLATION {text}")
        self.broken.append(text)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.now - 1000:9.4f} {text}")


class Runtime:
    """The world as a `prouter.transport.runtime.Runtime` of one process, which may die."""

    def __init__(self, world: World) -> None:
        self.alive = True
        self.now: Callable[[], float] = lambda: world.now
        self._world = world
        self.soon: Callable[[Callable[[], None]], Any] = self._soon
        self.spawn: Callable[..., Any] = self._spawn
        self.later: Callable[[float, Callable[[], None]], None] = self.after

    def _soon(self, callback: Callable[[], None]) -> None:
        self.after(0.0, callback)

    def _spawn(self, function: Callable[..., None], *args: Any) -> None:
        self.after(self._world.random.uniform(0, 0.02), lambda: function(*args))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` in `delay` seconds if the process lives then."""

        def run() -> None:
            if self.alive:
                action()

        self._world.after(delay, run)


class Wire:
    """A connection between a dialling process and the broker.

    Args:
        to_broker, to_dialler: called with each message that arrives there.
        broker_closed, dialler_closed: called when the other side finds the connection reset.
    """

    def __init__(
        self,
        world: World,
        to_broker: Callable[[Message], None],
        to_dialler: Callable[[Message], None],
        broker_closed: Callable[[], None],
        dialler_closed: Callable[[], None],
    ) -> None:
        self.open = True
        self._world = world
        self._sinks = (to_broker, to_dialler)
        self._closed = (broker_closed, dialler_closed)
        self._last = [0.0, 0.0]
        self._base = world.random.choice((0.0005, 0.002, 0.05))

    def send(self, direction: int, parts: Sequence[bytes]) -> bool:
        """Send to the broker (0) or to the dialler (1). The sender does not learn what is lost."""
        if not self.open:
            return True
        world = self._world
        message = list(parts)
        arrival = max(self._last[direction], world.now + self._base * world.random.uniform(0.5, 2))
        self._last[direction] = arrival

        def deliver() -> None:
            if self.open:
                self._sinks[direction](message)

        world.after(arrival - world.now, deliver)
        return True

    def cut(self, *, noticed_by_broker: bool, noticed_by_dialler: bool) -> None:
        """Close the connection."""
        if not self.open:
            return
        self.open = False
        for notices, closed in zip((noticed_by_broker, noticed_by_dialler), self._closed, strict=True):
            if notices:
                self._world.after(self._world.random.uniform(0, 0.05), closed)

    def stall(self, seconds: float) -> None:
        """Delay everything for a while; nothing is lost."""
        until = self._world.now + seconds
        self._last = [max(last, until) for last in self._last]
