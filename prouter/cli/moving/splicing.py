"""Two connections joined: what comes from one goes to the other, by one thread, because TLS needs that."""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import suppress

__all__ = ["splice"]

_CHUNK = 64 * 1024
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Way:
    """One direction.

    Attributes:
        source: where bytes come from.
        sink: where they go.
        waiting: bytes that the sink has not taken yet; nothing is read meanwhile.
        ended: whether the source has ended.
        done: whether the sink was told so.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, waiting: bytes = b"") -> None:
        self.source = source
        self.sink = sink
        self.waiting = memoryview(waiting)
        self.ended = False
        self.done = False

    def pass_on(self) -> bool:
        """Read and write what can be read and written now; return whether there may be more at once."""
        if not self.waiting and not self.ended:
            try:
                data = self.source.recv(_CHUNK)
                self.waiting, self.ended = memoryview(data), not data
            except _LATER:
                return False
        while self.waiting:
            try:
                self.waiting = self.waiting[self.sink.send(self.waiting) :]
            except _LATER:
                return False
        if self.ended and not self.done:
            self.done = True
            if not isinstance(self.sink, ssl.SSLSocket):  # TLS cannot end one direction alone
                with suppress(OSError):
                    self.sink.shutdown(socket.SHUT_WR)
        return isinstance(self.source, ssl.SSLSocket) and self.source.pending() > 0


def splice(client: socket.socket, server: socket.socket, early: bytes = b"") -> None:
    """Pass bytes on in both directions until both have ended, or the server has.

    Args:
        early: bytes of the server that were read already.

    Raises:
        OSError: a connection was lost.
    """
    there, back = _Way(client, server), _Way(server, client, early)
    client.setblocking(False)
    server.setblocking(False)
    while not (there.done and back.done) and not (back.done and isinstance(server, ssl.SSLSocket)):
        again = [way.pass_on() for way in (there, back) if not way.done]
        if any(again):
            continue
        ways = [way for way in (there, back) if not way.done]
        if not ways:
            return
        reading = [way.source for way in ways if not way.waiting]
        writing = [way.sink for way in ways if way.waiting]
        _wait(reading, writing)


def _wait(reading: list[socket.socket], writing: list[socket.socket]) -> None:
    waiting = select.poll()
    wanted: dict[int, int] = {}
    for one in reading:
        wanted[one.fileno()] = wanted.get(one.fileno(), 0) | select.POLLIN
    for one in writing:
        wanted[one.fileno()] = wanted.get(one.fileno(), 0) | select.POLLOUT
    for descriptor, events in wanted.items():
        waiting.register(descriptor, events)
    waiting.poll()
