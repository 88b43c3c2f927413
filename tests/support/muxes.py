"""Two muxes without a transport, and what their applications saw, for tests of the protocol alone."""

from __future__ import annotations

from typing import Any

from prouter.fabric.frames import Frame
from prouter.fabric.mux import Closed, Finished, Mux, Opened, Received, ResetReceived, StreamEvent, Writable
from prouter.fabric.stream import Stream

__all__ = ["End", "exchange", "linked", "opened"]


class End:
    """One application with its mux, and what it wrote, read and was told."""

    def __init__(self, *, accepts: bool, **options: Any) -> None:
        self.mux = Mux(lambda mux: None, accepts=accepts, **options)
        self.streams: dict[int, Stream] = {}
        self.written: dict[int, bytearray] = {}
        self.read: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.closed: set[int] = set()
        self.resets: dict[int, str] = {}
        self.blocked: set[int] = set()

    def know(self, stream: Stream) -> Stream:
        self.streams[stream.sid] = stream
        self.written[stream.sid] = bytearray()
        self.read[stream.sid] = bytearray()
        return stream

    def take(self, events: list[StreamEvent]) -> None:
        for event in events:
            sid = event.stream.sid
            if isinstance(event, Opened):
                assert sid not in self.streams, "a stream is opened once"
                self.know(event.stream)
            elif isinstance(event, Received):
                assert sid not in self.finished | set(self.resets), "nothing follows the end"
                self.read[sid] += event.data
            elif isinstance(event, Finished):
                assert sid not in self.finished
                self.finished.add(sid)
            elif isinstance(event, Writable):
                self.blocked.discard(sid)
            elif isinstance(event, ResetReceived):
                assert sid not in self.resets, "a reset is told once"
                self.resets[sid] = event.code
            elif isinstance(event, Closed):
                self.closed.add(sid)

    def write(self, stream: Stream, data: bytes) -> None:
        taken = stream.write(data)
        self.written[stream.sid] += data[:taken]
        if taken < len(data):
            self.blocked.add(stream.sid)


def linked(**options: Any) -> tuple[End, End]:
    opener, acceptor = End(accepts=False, **options), End(accepts=True, **options)
    for end in (opener, acceptor):
        end.mux.path_up()
    exchange(opener, acceptor)
    return opener, acceptor


def exchange(opener: End, acceptor: End) -> list[Frame]:
    """Deliver frames until neither end has any; return them all."""
    passed: list[Frame] = []
    while True:
        there, back = opener.mux.take(), acceptor.mux.take()
        if not there and not back:
            return passed
        passed += there + back
        acceptor.take(acceptor.mux.receive(there))
        opener.take(opener.mux.receive(back))


def opened(opener: End, acceptor: End, window: int = 100) -> tuple[Stream, Stream]:
    stream = opener.know(opener.mux.open({"kind": "test"}, window))
    exchange(opener, acceptor)
    return stream, acceptor.streams[stream.sid]
