"""Which descriptors the broker's event loop watches, and in which order those that are ready are served.

Three epoll descriptors, two inside the third: workers and everything internal are looked at in each iteration, agents
in batches, and unauthenticated connections a few at a time.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from enum import Enum

__all__ = ["Handle", "Poller", "Turn"]

Handle = Callable[[float], None]
"""Called with the time when the descriptor is ready."""

_AT_ONCE = 32
"""Agents that are heard before workers are looked at again."""
_UNAUTHENTICATED = 8
"""Unauthenticated connections that are heard in an event loop iteration."""
_UNAUTHENTICATED_BESIDE = 2
"""The same while more agents are ready than are heard: a fifth of the time of these."""


class Turn(Enum):
    """When a descriptor is served."""

    FIRST = "first"
    """In each iteration: workers, signals, the store."""
    AGENTS = "agents"
    """Some in each iteration."""
    UNAUTHENTICATED = "unauthenticated"
    """Few in each iteration."""


class Poller:
    """The descriptors watched, each with what to call.

    Attributes:
        full: whether the last `poll` found as many agents as it takes, so that others may wait.
        crowded: the same of unauthenticated connections.
    """

    def __init__(self) -> None:
        self._all = select.epoll()
        self._first = select.epoll()
        self._outside = select.epoll()
        self._epolls = {Turn.FIRST: self._first, Turn.AGENTS: self._all, Turn.UNAUTHENTICATED: self._outside}
        self._handles: dict[int, Handle] = {}
        self._watched: dict[int, select.epoll] = {}
        self._first_fd, self._outside_fd = self._first.fileno(), self._outside.fileno()
        self._all.register(self._first, select.EPOLLIN)
        self._all.register(self._outside, select.EPOLLIN)
        self.full = self.crowded = False

    def watch(self, fd: int, handle: Handle, turn: Turn = Turn.FIRST, events: int = select.EPOLLIN) -> None:
        """Call `handle(now)` whenever `fd` is ready."""
        epoll = self._epolls[turn]
        epoll.register(fd, events)
        self._handles[fd] = handle
        self._watched[fd] = epoll

    def watch_writing(self, fd: int, handle: Handle) -> None:
        """Call `handle(now)` when `fd` is writable, as it is once it is connected."""
        self.watch(fd, handle, Turn.AGENTS, select.EPOLLOUT)

    def unwatch(self, fd: int) -> None:
        """Watch `fd` no more, if it is watched."""
        if self._handles.pop(fd, None) is not None:
            self._watched.pop(fd).unregister(fd)

    def change(self, fd: int, events: int) -> None:
        """Watch for other events, if `fd` is watched."""
        epoll = self._watched.get(fd)
        if epoll is not None:
            epoll.modify(fd, events)

    def promote(self, fd: int, events: int) -> None:
        """The peer is authenticated: serve it with the other agents."""
        if self._watched.get(fd) is self._outside:
            self._outside.unregister(fd)
            self._all.register(fd, events)
            self._watched[fd] = self._all

    def gather(self, seconds: float) -> None:
        """Wait for something that is served first, at most so long: others may gather meanwhile."""
        self._first.poll(seconds)

    def poll(self, timeout: float) -> list[Handle]:
        """Wait at most `timeout` seconds (-1: as long as it takes); what to call."""
        events = self._all.poll(timeout, _AT_ONCE)
        self.full = len(events) == _AT_ONCE
        ready = [fd for fd, _ in events]
        if self._first_fd in ready or self.full:  # With many agents ready, the first may not be among the events.
            ready[:0] = [fd for fd, _ in self._first.poll(0)]
        self.crowded = False
        if self._outside_fd in ready or self.full:
            most = _UNAUTHENTICATED_BESIDE if self.full else _UNAUTHENTICATED
            outside = self._outside.poll(0, most)
            self.crowded = len(outside) == most
            ready += [fd for fd, _ in outside]
        handles = self._handles  # The inner epolls are not among them.
        return [handles[fd] for fd in ready if fd in handles]

    def close(self) -> None:
        """Watch nothing any more."""
        for epoll in (self._all, self._first, self._outside):
            epoll.close()
