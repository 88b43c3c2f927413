"""Our ZMTP against libzmq over real sockets: each understands the other, and no message is lost or stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
import zmq

from prouter.broker.base.switch import Path as SwitchPath
from prouter.broker.base.switch import Switch
from prouter.broker.sockets.port import Port
from prouter.errors import ProtocolError
from prouter.fabric.session import Session
from prouter.transport.dealer import DealerSocket
from prouter.transport.zmtp.unix_listener import UnixListener
from tests.support.fabric_peers import until
from tests.support.ports import free_port

MIB = 1024 * 1024
MESSAGES = [[b"", b"x"], [b"route", bytes(300)], [b"r" * 255, bytes(70_000), b"", b"z" * (3 * MIB)], [b"end"]]


class Ends:
    """Sockets of one test, closed after it."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.received: list[list[bytes]] = []
        self.ends: list[str] = []
        """Why sockets ended."""
        self._closing: list[Callable[[], Any]] = []

    def endpoint(self, scheme: str) -> str:
        return f"ipc://{self.work_dir}/router" if scheme == "ipc" else f"tcp://127.0.0.1:{free_port()}"

    def router(self, endpoint: str, **options: int) -> zmq.Socket[bytes]:
        router = self.context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            router.setsockopt(getattr(zmq, name), value)
        router.bind(endpoint)
        return router

    def dealer(self, endpoint: str, identity: bytes = b"me") -> DealerSocket:
        dealer = DealerSocket(endpoint, self._arrived, self._ended, identity)
        self._closing.append(dealer.close)
        return dealer

    def _arrived(self, parts: list[bytes]) -> None:
        self.received.append([bytes(part) for part in parts])

    def _ended(self, reason: str) -> None:
        self.ends.append(reason)

    def close(self) -> None:
        for close in self._closing:
            close()
        self.context.destroy(0)


@pytest.fixture
def ends(work_dir: Path) -> Iterator[Ends]:
    found = Ends(work_dir)
    yield found
    found.close()


def take(router: zmq.Socket[bytes], seconds: float = 10.0) -> list[bytes]:
    """The next message, with the routing id as the dealer chose it; the loop runs meanwhile."""
    rid, *parts = until(lambda: router.poll(0) and router.recv_multipart(), seconds)
    return [rid[: len(b"me")], *parts]


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_messages_pass_in_both_directions(ends: Ends, scheme: str) -> None:
    endpoint = ends.endpoint(scheme)
    router = ends.router(endpoint)
    dealer = ends.dealer(endpoint)
    for message in MESSAGES:
        assert dealer.send(message)
    for message in MESSAGES:
        rid, *parts = until(lambda: router.poll(0) and router.recv_multipart())
        assert parts == message
        router.send_multipart([rid, *message])
    until(lambda: len(ends.received) == len(MESSAGES))
    assert ends.received == MESSAGES
    assert not ends.ends


def test_messages_wait_for_the_connection(ends: Ends) -> None:
    endpoint = ends.endpoint("tcp")
    router = ends.router(endpoint)
    dealer = ends.dealer(endpoint)
    assert dealer.send([b"early"])
    assert take(router) == [b"me", b"early"]


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_one_attempt_is_made_and_its_failure_told(ends: Ends, scheme: str) -> None:
    endpoint = ends.endpoint(scheme)
    dealer = ends.dealer(endpoint)
    until(lambda: ends.ends)
    (reason,) = ends.ends
    assert reason.endswith("connection refused" if scheme == "tcp" else "no such file or directory")
    assert not dealer.send([b"late"])


def test_a_name_is_looked_up_and_every_address_tried(ends: Ends) -> None:
    router = ends.router(ends.endpoint("tcp"))
    port = router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
    ends.dealer(f"tcp://localhost:{port}").send([b"hello"])
    assert take(router) == [b"me", b"hello"]


def test_ipv6(ends: Ends) -> None:
    try:
        router = ends.router(endpoint := f"tcp://[::1]:{free_port()}", IPV6=1)
    except zmq.ZMQError:
        pytest.skip("no IPv6 here")
    ends.dealer(endpoint).send([b"hello"])
    assert take(router) == [b"me", b"hello"]


def test_a_lost_connection_is_told(ends: Ends) -> None:
    endpoint = ends.endpoint("ipc")
    router = ends.router(endpoint)
    dealer = ends.dealer(endpoint)
    dealer.send([b"one"])
    assert take(router) == [b"me", b"one"]
    router.close(0)
    until(lambda: ends.ends == ["connection closed"])
    assert not dealer.send([b"two"])


def test_a_router_that_does_not_read_holds_nobody_up_and_misses_nothing(ends: Ends) -> None:
    endpoint = ends.endpoint("tcp")
    router = ends.router(endpoint, RCVHWM=1)
    dealer = ends.dealer(endpoint)
    for number in range(40):
        assert dealer.send([b"%d" % number, bytes(MIB)])
    gevent.sleep(0.2)
    for number in range(40):
        assert take(router) == [b"me", b"%d" % number, bytes(MIB)]


def test_last_words_leave_when_it_is_closed(ends: Ends) -> None:
    endpoint = ends.endpoint("tcp")
    router = ends.router(endpoint, RCVHWM=1)
    dealer = ends.dealer(endpoint)
    dealer.send([b"first"])
    assert take(router) == [b"me", b"first"]
    for _ in range(20):
        dealer.send([bytes(MIB)])
    dealer.send([b"last"])
    dealer.close(linger=10)
    assert not dealer.send([b"later"])
    assert [take(router)[1] for _ in range(21)][-1] == b"last"


@pytest.mark.parametrize(
    "endpoint", ["nowhere", "tcp://nowhere", "tcp://:80", "tcp://host:0", "tcp://host:x", "udp://h:1", "tcp://a..b:1"]
)
def test_what_is_no_endpoint_is_refused(ends: Ends, endpoint: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        ends.dealer(endpoint)


# -- the broker's end ---------------------------------------------------------------------------------------------


class Mirror:
    """A listener whose connections get back what they send."""

    def __init__(self, work_dir: Path) -> None:
        self.endpoint = f"ipc://{work_dir}/broker.ipc"
        self.dirty: list[Port] = []
        self.listener = UnixListener(work_dir / "broker.ipc")
        self.ports: list[Port] = []
        self.switch = Switch()
        self.path: SwitchPath | None = None

    def unauthenticated_may_send(self, limit: int) -> None:
        self.listener.close()
        self.listener = UnixListener(Path(self.endpoint.removeprefix("ipc://")), limit=limit)

    def turn(self) -> None:
        for connection in self.listener.accept():
            self.ports.append(Port(self.dirty))
            self.ports[-1].path = self.path
            self.ports[-1].connected(connection)
        for port in list(self.ports):
            try:
                port.pump(self.switch, 0.0, self._back, self)
            except (OSError, ProtocolError):
                self.ports.remove(port)
                port.close()
        for port in self.ports:
            port.flush()
        self.dirty.clear()

    def unreachable(self, target: SwitchPath, now: float) -> None:
        """See `Routing`; nothing is routed."""

    def unroutable(self, source: SwitchPath, now: float) -> None:
        """See `Routing`."""

    def overflowed(self, source: SwitchPath, target: SwitchPath, size: int, now: float) -> None:
        """See `Routing`."""

    def _back(self, port: Port, parts: Sequence[bytes], now: float) -> None:
        assert port.queue([b"", *parts])


@pytest.fixture
def mirror(work_dir: Path) -> Iterator[Mirror]:
    found = Mirror(work_dir)
    yield found
    for port in found.ports:
        port.close()
    found.listener.close()


def until_mirrored(mirror: Mirror, condition: Callable[[], Any]) -> Any:
    def turn() -> Any:
        mirror.turn()
        return condition()

    return until(turn, 20)


def test_zeromqs_own_dealer_is_understood(ends: Ends, mirror: Mirror) -> None:
    dealer = ends.context.socket(zmq.DEALER)
    dealer.connect(mirror.endpoint)
    for number in range(3):
        message = [b"", b"%d" % number, bytes(300), bytes(2 * MIB)]
        dealer.send_multipart(message)
        assert until_mirrored(mirror, lambda: dealer.poll(0) and dealer.recv_multipart()) == message
    dealer.close(0)
    until_mirrored(mirror, lambda: not mirror.ports)


def test_both_ends_of_ours_when_the_reader_is_slow(ends: Ends, mirror: Mirror) -> None:
    dealer = ends.dealer(mirror.endpoint)
    sent = [[b"", b"%d" % number, bytes(MIB)] for number in range(20)]
    for message in sent:
        dealer.send(message)
    until_mirrored(mirror, lambda: len(ends.received) == len(sent))
    assert ends.received == sent


def test_a_stranger_may_send_little(ends: Ends, mirror: Mirror) -> None:
    mirror.unauthenticated_may_send(10_000)
    dealer = ends.dealer(mirror.endpoint)
    dealer.send([b"", bytes(9_000)])
    until_mirrored(mirror, lambda: ends.received == [[b"", bytes(9_000)]])
    dealer.send([b"", bytes(11_000)])
    until_mirrored(mirror, lambda: ends.ends == ["connection closed"])


def test_a_peer_with_a_path_may_send_much(ends: Ends, mirror: Mirror) -> None:
    mirror.unauthenticated_may_send(10_000)
    mirror.path = SwitchPath(None, b"", Session(0.0, 1.0), 0.0)
    dealer = ends.dealer(mirror.endpoint)
    dealer.send([b"", bytes(MIB)])
    until_mirrored(mirror, lambda: ends.received == [[b"", bytes(MIB)]])


def test_a_listener_takes_the_place_a_killed_one_left(mirror: Mirror, work_dir: Path) -> None:
    assert (work_dir / "broker.ipc").exists()
    UnixListener(work_dir / "broker.ipc").close()
    assert not (work_dir / "broker.ipc").exists()


def test_last_words_to_a_worker_leave_before_the_broker_ends(mirror: Mirror, ends: Ends) -> None:
    dealer = ends.context.socket(zmq.DEALER)
    dealer.connect(mirror.endpoint)
    dealer.send_multipart([b"", b"hello"])
    assert until_mirrored(mirror, lambda: dealer.poll(0) and dealer.recv_multipart()) == [b"", b"hello"]
    (port,) = mirror.ports
    for _ in range(8):
        assert port.queue([b"agent", bytes(MIB)])
    port.close(20)
    assert not port.queue([b"too late"])
    assert [dealer.recv_multipart()[0] for _ in range(8)] == [b"agent"] * 8
