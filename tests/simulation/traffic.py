"""Streams with every byte checked: workers write a pattern and agents echo it, both at uneven speeds."""

from __future__ import annotations

from typing import Any

from prouter.fabric.stream import Direction, Stream
from prouter.fabric.windows import GROWTH
from tests.simulation.nodes import AgentNode, WorkerNode
from tests.simulation.world import Runtime, World

__all__ = ["Echo", "Talk"]

_PATTERN = bytes((number * 167 + number // 251) % 256 for number in range(1 << 16)) * 2
WINDOW = 4096


def _expected(start: int, size: int) -> bytes:
    offset = start % (1 << 16)
    return _PATTERN[offset : offset + size]


def _check_kept(world: World, stream: Stream) -> None:
    """Check that the stream keeps no more than the largest window and the rest of a partly consumed piece."""
    kept = [data for _, data in stream._kept]
    most = stream.window * GROWTH
    if sum(map(len, kept[1:])) > most or stream.sent - stream.acknowledged > most + 1:
        world.fail(f"more than a window kept: {list(map(len, kept))}")
    if stream.unread > stream.window * GROWTH:
        world.fail(f"more than a window unread: {stream.unread}")


class _End:
    """What both ends have in common: they consume what arrives, some of it later."""

    takes_views = False

    def __init__(self, world: World, runtime: Runtime, stream: Stream) -> None:
        self.world = world
        self.runtime = runtime
        self.stream = stream
        self.received = 0
        self.finished = False
        self.reset_code: str | None = None
        stream.handler = self

    def on_data(self, data: bytes) -> None:
        if data != _expected(self.received, len(data)):
            self.world.fail(f"wrong bytes at {self.received}")
        self.received += len(data)
        _check_kept(self.world, self.stream)
        size = len(data)
        if self.world.calm or self.world.random.random() < 0.7:
            self.stream.consume(size)
        else:
            self.runtime.after(self.world.random.uniform(0, 1.0), lambda: self.stream.consume(size))

    def on_finish(self) -> None:
        self.finished = True

    def on_writable(self) -> None:
        """Do nothing."""

    def on_reset(self, code: str, text: str) -> None:
        self.reset_code = code

    def on_closed(self) -> None:
        """Do nothing; the checks look at the stream in the end."""


class Echo(_End):
    """The agent's end: sends back what arrives, and ends after the worker has."""

    def __init__(self, agent: AgentNode, stream: Stream, target: dict[str, Any]) -> None:
        super().__init__(agent.world, agent.runtime, stream)
        self.sent = 0

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        self._send()

    def on_finish(self) -> None:
        super().on_finish()
        self._send()

    def on_writable(self) -> None:
        self._send()

    def _send(self) -> None:
        stream = self.stream
        while self.sent < self.received and stream.sending is Direction.OPEN and not stream.closed:
            taken = stream.write(_expected(self.sent, min(self.received - self.sent, 3000)))
            self.sent += taken
            if not taken:
                return
        if self.finished and self.sent == self.received:
            stream.close()


class Talk(_End):
    """The worker's end: writes `total` bytes in uneven pieces, then ends; or resets in the middle.

    Attributes:
        lingers: whether it does not end before `release`.
    """

    def __init__(self, worker: WorkerNode, connection: str, total: int) -> None:
        stream = worker.peer.mux(connection.encode()).open({"kind": "echo"}, WINDOW)
        super().__init__(worker.world, worker.runtime, stream)
        self.worker = worker
        self.total = total
        self.sent = 0
        self.lingers = worker.world.random.random() < 0.15
        self._resets_at = worker.world.random.randrange(total + 1) if worker.world.random.random() < 0.1 else None
        self._write()

    def release(self) -> None:
        """Let the stream end now."""
        self.lingers = False
        self._write()

    def on_writable(self) -> None:
        self._write()

    def on_finish(self) -> None:
        super().on_finish()
        if self.received != self.total:
            self.world.fail(f"a clean end after {self.received} of {self.total} bytes")

    def _write(self) -> None:
        stream = self.stream
        if stream.closed or stream.sending is not Direction.OPEN:
            return
        if self._resets_at is not None and self.sent >= self._resets_at:
            stream.reset("enough", "the worker has enough")
            self.on_reset("enough", "")
            return
        if self.sent == self.total:
            if not self.lingers:
                stream.close()
            return
        size = min(self.total - self.sent, self.world.random.choice((1, 100, 1500, 5000)))
        taken = stream.write(_expected(self.sent, size))
        self.sent += taken
        _check_kept(self.world, stream)
        if taken == size:
            self.runtime.after(self.world.random.uniform(0, 0.3), self._write)
