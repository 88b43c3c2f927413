"""The broker's connections over real sockets, with an authority that does as the test says."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import cast

import pytest

from prouter.broker.base.env import Env, Persistence, Shell
from prouter.broker.base.settings import Settings
from prouter.broker.base.switch import Path
from prouter.broker.sockets.connections import Connections
from prouter.broker.sockets.poller import Poller
from prouter.broker.sockets.port import Port
from prouter.broker.sockets.unheard import AGENTS_AT_ONCE, Unheard
from prouter.errors import ProtocolError
from prouter.fabric.session import Session
from prouter.transport.zmtp.codec import encode_message
from prouter.transport.zmtp.handshakes import opening
from prouter.transport.zmtp.tcp_listener import TcpListener


class Stand:
    """Connections with their loop; each control message is given to `control`."""

    def __init__(self) -> None:
        self.control_of: Callable[[Port, Sequence[bytes]], None] = lambda port, parts: None
        self.env = Env(
            settings=Settings(uid="router-1", name="r"),
            shell=cast(Shell, None),
            store=cast(Persistence, None),
            wall=time.time,
            new_uid=lambda: "",
            incarnation="b" * 32,
        )
        self.poller = Poller()
        self.connections = Connections(self.env, self.poller, self, lambda handle, now: handle(now), 4096)
        self._listener = TcpListener("127.0.0.1", 0, limit=64 * 1024)
        self.connections.listen(self._listener, workers=False)
        self._stack = ExitStack()
        self.lost: Counter[Path] = Counter()
        """Messages that led nowhere, by sender."""

    def dial(self) -> socket.socket:
        host, _, port = self._listener.endpoint.removeprefix("tcp://").rpartition(":")
        peer = self._stack.enter_context(socket.create_connection((host, int(port)), 10))
        peer.sendall(opening(b"DEALER"))
        return peer

    def iterate(self) -> None:
        now = time.monotonic()
        for handle in self.poller.poll(0.01):
            handle(now)
        self.connections.go_on(now)
        self.env.timers.run(now, 100)
        self.connections.flush(now)

    def until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not reached():
            assert time.monotonic() < deadline, "it did not happen"
            self.iterate()

    def close(self) -> None:
        self._stack.close()
        self.connections.close(0)
        self.poller.close()

    # -- Authority

    def control(self, port: Port, parts: Sequence[bytes], now: float) -> None:
        self.control_of(port, parts)

    def unreachable(self, target: Path, now: float) -> None:
        raise AssertionError("everybody is there")

    def unroutable(self, source: Path, now: float) -> None:
        self.lost[source] += 1

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        raise AssertionError("there is room")

    def relieved(self, target: Path, sources: list[Path], now: float) -> None:
        raise AssertionError("there was room")

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        raise AssertionError(error)

    def disconnected(self, path: Path, now: float) -> None:
        return

    def troubled(self, path: Path, text: str) -> None:
        return

    def unfinished(self, path: Path, now: float) -> None:
        raise AssertionError("all is finished")

    def ahead(self, path: Path, now: float) -> None:
        raise AssertionError("nobody is paused")

    def flush(self, now: float) -> None:
        return


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def closed(peer: socket.socket) -> bool:
    """Whether the broker's end is closed; what it sent before is read."""
    peer.setblocking(False)
    try:
        while peer.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_a_connection_at_which_something_unexpected_fails_is_closed_and_others_go_on(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def control(port: Port, parts: Sequence[bytes]) -> None:
        if parts[0] == b"bad":
            raise RuntimeError("a mistake")
        heard.append(bytes(parts[0]))

    stand.control_of = control
    good, bad = stand.dial(), [stand.dial() for _ in range(30)]
    for peer in bad:
        peer.sendall(b"".join(encode_message([b"", b"bad"])))
    stand.until(lambda: all(map(closed, bad)))
    good.sendall(b"".join(encode_message([b"", b"good"])))
    stand.until(lambda: heard == [b"good"])
    assert stand.env.counts["failures"] == 30
    assert 1 <= sum("connection_failed" in record.getMessage() for record in caplog.records) <= 20


def test_agents_that_send_without_pause_are_heard_in_turns_and_some_at_once(stand: Stand) -> None:
    paths: list[Path] = []

    def control(port: Port, parts: Sequence[bytes]) -> None:
        paths.append(Path(port, b"", Session(0.0, 2.0), 0.0))
        stand.connections.accept(paths[-1])

    stand.control_of = control
    message, count = b"".join(encode_message([b"x", b""])), 3 * AGENTS_AT_ONCE
    peers = [stand.dial() for _ in range(count)]
    for peer in peers:
        peer.sendall(b"".join(encode_message([b"", b"hello"])))
    stand.until(lambda: len(paths) == count)
    for peer in peers:
        peer.sendall(message * 8000)
    stand.until(lambda: len(stand.lost) == count)
    heard: set[Path] = set()
    for _ in range(count):
        before = stand.lost.copy()
        stand.connections.go_on(time.monotonic())
        now = {path for path, messages in stand.lost.items() if messages > before[path]}
        assert 0 < len(now) <= AGENTS_AT_ONCE
        again = now & heard
        heard |= now
        if len(heard) == count:
            break
        assert not again, "all others have a turn first"
    assert heard == set(paths)
    stand.until(lambda: set(stand.lost.values()) == {8000})
    assert not stand.connections.busy


def test_workers_with_more_to_be_moved_do_not_wait_for_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    unheard, agents, worker = Unheard(), [Port([]) for _ in range(100)], Port([], worker=True)
    for port in (*agents, worker):
        unheard.add(port)
    unheard.discard(agents[1])
    monkeypatch.setattr("prouter.broker.sockets.unheard._BUDGET", 60.0)
    assert list(unheard.turns()) == [worker, agents[0], *agents[2 : AGENTS_AT_ONCE + 1]]
    monkeypatch.setattr("prouter.broker.sockets.unheard._BUDGET", 0.0)
    unheard.add(worker)
    assert list(unheard.turns()) == [worker, agents[AGENTS_AT_ONCE + 1]], "one agent at least"
    assert [port for port in (*agents, worker) if port.unheard] == agents[AGENTS_AT_ONCE + 2 :]
