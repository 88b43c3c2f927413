"""Sockets that were accepted and wait for their handshakes to begin.

When thousands of agents dial at once, each handshake that has begun is worth finishing first: an agent that gives up
meanwhile costs the work that was done for it, and comes again. The kernel keeps 4,096 connections that were not
accepted, and drops the packets of others, who then try again, too. So the broker accepts them all, and begins with as
many handshakes as it finishes.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterator
from socket import socket
from typing import Generic, TypeVar

__all__ = ["Waiting", "says_something"]

_SILENCE = 2.0
"""Seconds within which a client has said something, once it is connected."""
_CLOSED = select.POLLRDHUP | select.POLLHUP | select.POLLERR

Origin = TypeVar("Origin")


class Waiting(Generic[Origin]):
    """The sockets that wait, in the order in which they came, each with where it came from.

    Attributes:
        cut: how many were closed because they said nothing.
    """

    def __init__(self) -> None:
        self.cut = 0
        self._queue: deque[tuple[socket, Origin, float]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sock: socket, origin: Origin, now: float) -> None:
        """A socket was accepted."""
        self._queue.append((sock, origin, now))

    def take(self, most: int, now: float) -> Iterator[tuple[socket, Origin]]:
        """Sockets whose handshakes are to begin; those whose clients have left, or say nothing, are closed."""
        for _ in range(min(most, len(self._queue))):
            sock, origin, since = self._queue.popleft()
            events = _events(sock.fileno())
            if events & _CLOSED:
                sock.close()
            elif not events and now > since + _SILENCE:
                self.cut += 1
                sock.close()
            else:
                yield sock, origin

    def close(self) -> None:
        """Close all."""
        while self._queue:
            self._queue.popleft()[0].close()


def says_something(fd: int) -> bool:
    """Whether something of the other end waits to be read."""
    return bool(_events(fd))


def _events(fd: int) -> int:
    waiting = select.poll()
    waiting.register(fd, select.POLLIN | select.POLLRDHUP)
    return sum(events for _, events in waiting.poll(0))
