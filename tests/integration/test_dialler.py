"""The dialler over real sockets: it dials a peer that is away at the delays of its backoff and at no others."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from prouter.fabric.frames import HELLO, decode
from prouter.fabric.session import LOST_AFTER
from prouter.transport.backoff import Backoff
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer
from tests.support.fabric_peers import until
from tests.support.ports import free_port


class Client:
    """A process that dials and is never welcomed."""

    def __init__(self, endpoint: str, backoff: Backoff, heartbeat: float = 30.0) -> None:
        self.losses: list[str] = []
        self.attempts: list[float] = []
        """When each began."""
        self.troubles: list[str] = []
        self.dialler = Dialler(
            Peer(self),  # type: ignore[arg-type]
            endpoint,
            identity="me",
            hello=self._hello,
            heartbeat=heartbeat,
            backoff=backoff,
            on_trouble=self.troubles.append,
        )
        self.dialler.start()

    def _hello(self) -> dict[str, str]:
        self.attempts.append(time.monotonic())
        return {"kind": "test"}

    def on_lost(self, peer: Peer, reason: str) -> None:
        self.losses.append(reason)
        self.dialler.lost()


Start = Callable[..., Client]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(endpoint, backoff)``: a client that dials."""
    clients: list[Client] = []

    def begin(endpoint: str, backoff: Backoff, heartbeat: float = 30.0) -> Client:
        clients.append(Client(endpoint, backoff, heartbeat))
        return clients[-1]

    yield begin
    for client in clients:
        client.dialler.stop()


@pytest.fixture
def bound() -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """``bound(endpoint)``: a ROUTER of libzmq; given a descriptor, it accepts from that."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def bind(endpoint: str, descriptor: int = -1) -> zmq.Socket[bytes]:
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.USE_FD, descriptor)
        router.bind(endpoint)
        return router

    yield bind
    context.destroy(0)


def greeting(router: zmq.Socket[bytes]) -> bytes:
    """The routing id of the next connection, which says HELLO."""
    rid, empty, *parts = until(lambda: router.poll(0) and router.recv_multipart(), 10)
    assert not empty
    assert [frame.type for frame in decode(parts)] == [HELLO]
    return bytes(rid)


def quick() -> Backoff:
    return Backoff(0.02, 0.05)


def test_a_router_that_is_not_there_yet_is_linked_when_it_comes(start: Start, bound: Any) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    client = start(endpoint, quick())
    until(lambda: len(client.losses) >= 2)
    assert all(reason.endswith("connection refused") for reason in client.losses)
    assert greeting(bound(endpoint)).startswith(b"me:")


def test_a_handshake_that_waits_for_others_is_not_taken_for_silence(start: Start, bound: Any) -> None:
    heartbeat = 0.05
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        client = start(endpoint, quick(), heartbeat)
        until(lambda: time.monotonic() - client.attempts[0] > 4 * LOST_AFTER * heartbeat)
        router = bound(endpoint, listener.detach())
    assert greeting(router).startswith(b"me:1")
    assert (len(client.attempts), client.losses) == (1, [])


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_lost_connection_is_made_again_under_another_routing_id(
    start: Start, bound: Any, work_dir: Path, scheme: str
) -> None:
    endpoint = f"ipc://{work_dir}/router" if scheme == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    router = bound(endpoint)
    client = start(endpoint, quick())
    first = greeting(router)
    router.close(0)
    until(lambda: "connection closed" in client.losses)
    assert greeting(bound(endpoint)) != first


def test_a_server_of_another_kind_is_tried_again_until_it_is_a_router(start: Start, bound: Any, work_dir: Path) -> None:
    path = work_dir / "router"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        other.setblocking(False)
        client = start(f"ipc://{path}", quick())
        for number in range(3):
            connection = until(lambda: _accepted(other))
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            until(lambda number=number: len(client.losses) > number)  # type: ignore[misc]
            connection.close()
    assert "no socket for agents" in client.losses[0]
    path.unlink()
    assert greeting(bound(f"ipc://{path}"))


def test_a_port_is_dialled_at_the_delays_of_the_backoff_and_not_in_between(start: Start) -> None:
    """Neither the socket nor ZeroMQ's library tries again by itself."""
    draws: list[tuple[float, float]] = []

    def longest(low: float, high: float) -> float:
        draws.append((time.monotonic(), high))
        return high

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        client = start(f"tcp://127.0.0.1:{server.getsockname()[1]}", Backoff(0.1, 30.0, uniform=longest))
        connections = 0

        def six_attempts() -> bool:
            nonlocal connections
            connection = _accepted(server)
            if connection is not None:
                connection.close()
                connections += 1
            return len(client.attempts) == 6

        until(six_attempts, 20)
    assert [delay for _, delay in draws] == pytest.approx([0.1, 0.15, 0.225, 0.3375, 0.50625])
    for attempt, (drawn, delay) in zip(client.attempts[1:], draws, strict=True):
        assert attempt > drawn + delay - 0.01
    probes = 4  # for the reason, after the failures 1, 2, 3 and 5
    assert connections <= len(client.attempts) + probes


def _accepted(server: socket.socket) -> socket.socket | None:
    try:
        return server.accept()[0]
    except BlockingIOError:
        return None
