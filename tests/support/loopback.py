"""A worker's and an agent's `Peer`, joined in one process without a broker, for tests of stream handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent

from prouter.fabric.calls import Request
from prouter.fabric.mux import DEFAULT_WINDOW
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.transport.peer import Peer

__all__ = ["Loopback", "wait_for"]

Accept = Callable[[Stream, dict[str, Any]], None]


class Loopback:
    """Opens streams that arrive at `accept`, over a path that can be cut and mended."""

    def __init__(self, accept: Accept) -> None:
        self.worker = Peer(_Delegate(lambda stream, target: None))
        self.agent = Peer(_Delegate(accept), accepts_streams=True)
        self.mend()

    def mend(self) -> None:
        """Join the two peers over a new path."""
        now = time.monotonic()
        self.agent.attach(self._carrier(self.worker, b"agent"), Session(now, 3600))
        self.worker.attach(self._carrier(self.agent, b"worker"), Session(now, 3600, {"kind": "worker"}))
        wait_for(lambda: self.worker.ready and self.agent.ready)
        self.agent.route_up(b"worker")
        self.worker.route_up(b"agent")

    def cut(self) -> None:
        """Lose the path and all that is in flight on it."""
        self.worker.detach()
        self.agent.detach()

    def open(self, target: dict[str, Any], window: int = DEFAULT_WINDOW) -> Stream:
        """Open a stream to the agent."""
        return self.worker.mux(b"agent").open(target, window)

    def worker_gone(self) -> None:
        """Do what an agent does when it hears that a worker is gone."""
        self.agent.route_gone(b"worker", "worker_gone", "the worker is gone")

    @property
    def open_streams(self) -> int:
        """Return how many streams either end still knows."""
        return sum(len(mux.streams) for peer in (self.worker, self.agent) for mux in peer.muxes.values())

    def _carrier(self, sink: Peer, source: bytes) -> Callable[[Sequence[bytes]], bool]:
        """Return a function that carries messages to `sink` in a later event loop iteration, with the route swapped."""

        def carry(parts: Sequence[bytes]) -> bool:
            session = sink.session
            message = [source if parts[0] else b"", *map(bytes, parts[1:])]

            def deliver() -> None:
                if sink.session is session:
                    sink.receive(message)

            gevent.get_hub().loop.run_callback(deliver)
            return True

        return carry


class _Delegate:
    def __init__(self, accept: Accept) -> None:
        self._accept = accept

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        peer.welcome({})

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None: ...

    def on_refused(self, peer: Peer, code: str, text: str) -> None: ...

    def on_lost(self, peer: Peer, reason: str) -> None: ...

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None: ...

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        return {}

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        self._accept(stream, target)


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Let the event loop run until `condition` holds; raise `gevent.Timeout` after `seconds`."""
    with gevent.Timeout(seconds):
        while not condition():
            gevent.sleep(0.001)
