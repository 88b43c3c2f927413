"""What a ROUTER's listener does beyond libzmq: limits, ends in order, closing one peer, keys that change."""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from prouter.errors import ProtocolError
from prouter.keys.files import make_pair
from prouter.transport.zeromq.acceptors import unreachable_listener
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection, NotConnected
from prouter.transport.zeromq.descriptors import cookie_of, received_bytes, shut_down
from prouter.transport.zeromq.listener import RouterListener
from prouter.transport.zeromq.router_connection import RouterConnection
from prouter.transport.zmtp.codec import Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening
from prouter.transport.zmtp.server_keys import ServerCurve
from tests.support.ports import free_port

_LIMIT = 64 * 1024
MIB = 1024 * 1024


class Stand:
    """A listener and what it has told."""

    def __init__(self, listener: RouterListener) -> None:
        self.listener = listener
        self.connections: list[RouterConnection] = []
        self.heard: dict[RouterConnection, list[list[bytes]]] = {}
        self.ended: dict[RouterConnection, Exception] = {}
        self.ticking = True

    def turn(self) -> None:
        if self.ticking:
            self.listener.tick(time.monotonic())
        for connection in self.listener.accept():
            self.connections.append(connection)
            self.heard[connection] = []
        for connection in self.listener.arrived():
            assert connection in self.heard, "a connection is told before what it sends"
            if connection in self.ended:
                continue
            try:
                self.heard[connection] += connection.receive()
            except (OSError, ProtocolError) as error:
                self.ended[connection] = error
                connection.close()

    def until(self, reached: Callable[[], object], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()
            time.sleep(0 if self.listener.more else 0.002)

    def raw(self, identity: bytes = b"", *, hello: bytes = b"hello") -> socket.socket:
        """A peer that speaks ZMTP by hand; its handshake is over."""
        host, _, port = self.listener.endpoint.removeprefix("tcp://").rpartition(":")
        sock = socket.create_connection((host, int(port)), 5)
        sock.sendall(opening(b"DEALER", identity or os.urandom(8).hex().encode()))
        sock.setblocking(False)
        seen = Zmtp(b"ROUTER")

        def greeted() -> bool:
            with suppress(BlockingIOError):
                seen.receive(sock.recv(1024))
            return seen.ready

        self.until(greeted)
        sock.settimeout(5)
        if hello:
            sock.sendall(message(b"", hello))
        return sock

    def peer(self) -> tuple[socket.socket, RouterConnection]:
        """A raw peer and its connection, which is trusted."""
        before = len(self.connections)
        sock = self.raw()
        self.until(lambda: len(self.connections) > before and self.heard[self.connections[-1]])
        connection = self.connections[-1]
        connection.trust()
        self.heard[connection].clear()
        return sock, connection


def message(*parts: bytes) -> bytes:
    return b"".join(encode_message(parts))


def bytes_of(parts: list[bytes]) -> list[bytes]:
    return [bytes(part) for part in parts]


def ended(sock: socket.socket) -> bool:
    """Whether the other side has closed a connection."""
    try:
        sock.settimeout(0.01)
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.fixture
def stand() -> Iterator[Stand]:
    listener = RouterListener("127.0.0.1", 0, limit=_LIMIT)
    yield Stand(listener)
    listener.close()


def test_a_message_that_does_not_end_is_measured_and_forgotten_when_it_does(stand: Stand) -> None:
    sock, connection = stand.peer()
    with closing(sock):
        stand.until(lambda: not connection.unfinished)
        head = b"\x02" + struct.pack(">Q", 3 * MIB)
        sock.sendall(head + bytes(2 * MIB))
        stand.until(lambda: 2 * MIB <= connection.unfinished <= 2 * MIB + 1000)
        sock.sendall(bytes(MIB))
        stand.until(lambda: stand.heard[connection])
        stand.until(lambda: not connection.unfinished)


def test_parts_without_end_of_an_unauthenticated_peer_close_its_connection(stand: Stand) -> None:
    with closing(stand.raw(hello=b"")) as sock:
        with suppress(OSError):
            for _ in range(200):
                sock.sendall(b"\x01\x64" + bytes(100))
            sock.sendall((b"\x01\x64" + bytes(100)) * 2000)
        stand.until(lambda: stand.ended)
        assert "more than an introduction" in str(next(iter(stand.ended.values())))
        stand.until(lambda: ended(sock))


def test_a_connection_says_nothing_before_its_handshake_and_can_be_closed(stand: Stand) -> None:
    host, _, port = stand.listener.endpoint.removeprefix("tcp://").rpartition(":")
    with closing(socket.create_connection((host, int(port)), 5)) as sock:
        stand.until(lambda: stand.connections)
        (connection,) = stand.connections
        assert not connection.ready
        connection.close()
        connection.close()
        stand.until(lambda: ended(sock))
    assert stand.heard == {connection: []}


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10, b"\xff" + bytes(63) + b"x" * 500, os.urandom(700), b"\x16\x03\x01"],
    ids=["http", "greeting", "random", "tls"],
)
def test_garbage_is_heard_as_nothing_of_use_and_others_are_served(stand: Stand, garbage: bytes) -> None:
    host, _, port = stand.listener.endpoint.removeprefix("tcp://").rpartition(":")
    with ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(closing(socket.create_connection((host, int(port)), 5)))
            with suppress(OSError):
                sock.sendall(garbage)
        sock, connection = stand.peer()
        stack.enter_context(closing(sock))
        sock.sendall(message(b"", b"still there"))
        stand.until(lambda: stand.heard[connection])
        assert not [one for one in stand.heard.values() if [b"", b"hello"] in map(bytes_of, one)]


def test_peers_that_come_speak_and_go_at_once_are_all_heard_to_the_end(stand: Stand) -> None:
    stand.ticking = False
    for number in range(300):
        stand.raw(hello=b"%d" % number).close()

    def words() -> list[bytes]:
        return [bytes(part) for connection in stand.connections for _, part in stand.heard[connection]]

    stand.until(lambda: len(words()) >= 300 and len(stand.ended) == len(stand.connections))
    assert sorted(words(), key=int) == [str(number).encode() for number in range(300)]
    assert not stand.listener.connections
    assert all(isinstance(error, OSError) for error in stand.ended.values())


def test_a_second_peer_with_the_routing_id_of_the_first_is_not_heard_in_its_place(stand: Stand) -> None:
    socks = []
    for number in range(2):
        socks.append(stand.raw(b"the same", hello=b"%d" % number))
        stand.until(lambda number=number: len(stand.connections) > number)  # type: ignore[misc]
        if not number:
            stand.until(lambda: stand.heard[stand.connections[0]])
    for _ in range(50):
        stand.turn()
    assert bytes_of(stand.heard[stand.connections[0]][0]) == [b"", b"0"]
    assert sum(map(len, stand.heard.values())) == 1
    for sock in socks:
        sock.close()


def test_the_end_of_one_is_told_while_another_never_pauses(stand: Stand) -> None:
    busy, busy_connection = stand.peer()
    going, going_connection = stand.peer()
    with closing(busy):
        going.close()
        busy.setblocking(False)
        flood = message(b"", b"x") * 1000
        deadline = time.monotonic() + 20
        while going_connection not in stand.ended:
            assert time.monotonic() < deadline
            with suppress(BlockingIOError):
                while True:
                    busy.send(flood)
            stand.turn()
            stand.heard[busy_connection].clear()


def test_descriptors_of_others_are_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        cookie = cookie_of(ours.fileno())
        assert cookie
        assert not shut_down(ours.fileno(), cookie + 1)
        assert not received_bytes(ours.fileno(), cookie + 1)
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
        assert shut_down(ours.fileno(), cookie)
    assert not shut_down(ours.fileno() if ours.fileno() >= 0 else 10**6, cookie)
    assert not cookie_of(10**6)
    with open(os.devnull, "rb") as file:
        assert not cookie_of(file.fileno())
        assert not shut_down(file.fileno(), 0)


# -- encryption -------------------------------------------------------------------------------------------------------


def connected(stand: Stand, dealer: DealerConnection, seconds: float = 20) -> Exception | None:
    """Wait for a handshake to end; why it failed, if it did."""
    failures: list[Exception] = []

    def settled() -> bool:
        try:
            dealer.receive()
        except (OSError, ProtocolError) as error:
            failures.append(error)
        return bool(failures) or dealer.ready

    stand.until(settled, seconds)
    return failures[0] if failures else None


def test_only_accepted_keys_get_in_and_are_known_by_them() -> None:
    pair, known, unknown = make_pair(), make_pair(), make_pair()
    asked: list[str] = []

    def accepts(key: str) -> bool:
        asked.append(key)
        return key == known.public

    stand = Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(pair, accepts), limit=_LIMIT))
    endpoint = stand.listener.endpoint
    with closing(stand.listener):
        refused = DealerConnection(endpoint, curve=ClientCurve(pair.public, unknown))
        assert "does not accept this end's key" in str(connected(stand, refused))
        welcome = DealerConnection(endpoint, curve=ClientCurve(pair.public, known))
        assert connected(stand, welcome) is None
        welcome.queue([b"", b"hello"])
        welcome.flush()
        stand.until(lambda: any(stand.heard.values()))
        (heard,) = [connection for connection in stand.connections if stand.heard[connection]]
        assert heard.peer_key == known.public
        assert asked == [unknown.public, known.public]
        for dealer in (refused, welcome):
            dealer.close()


@pytest.mark.parametrize("curve", [True, False], ids=["wrong key", "none"])
def test_who_does_not_know_the_key_gets_nothing(curve: bool) -> None:
    stand = Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(make_pair()), limit=_LIMIT))
    with closing(stand.listener):
        wrong = ClientCurve(make_pair().public, make_pair()) if curve else None
        dealer = DealerConnection(stand.listener.endpoint, curve=wrong)
        with closing(dealer):
            failure = connected(stand, dealer)
            assert isinstance(failure, ProtocolError)
            assert ("may be wrong" if curve else "wants encryption") in str(failure)
        stand.until(lambda: len(stand.ended) == len(stand.connections) == 1)
        assert not any(stand.heard.values())


def test_a_mistake_in_the_decision_lets_nobody_in() -> None:
    def accepts(key: str) -> bool:
        raise RuntimeError("a mistake")

    pair = make_pair()
    stand = Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(pair, accepts), limit=_LIMIT))
    with (
        closing(stand.listener),
        closing(DealerConnection(stand.listener.endpoint, curve=ClientCurve(pair.public, pair))) as dealer,
    ):
        assert isinstance(connected(stand, dealer), ProtocolError)


def test_a_new_server_key_counts_for_new_connections_and_old_ones_live_on() -> None:
    first, second = make_pair(), make_pair()
    stand = Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(first), limit=_LIMIT))
    endpoint = stand.listener.endpoint
    with closing(stand.listener), ExitStack() as stack:

        def dial(key: str) -> DealerConnection:
            return stack.enter_context(closing(DealerConnection(endpoint, curve=ClientCurve(key, make_pair()))))

        old = dial(first.public)
        assert connected(stand, old) is None
        stand.listener.change_key(second)
        assert stand.listener.endpoint == endpoint
        new = dial(second.public)
        assert connected(stand, new) is None
        assert isinstance(connected(stand, dial(first.public)), ProtocolError)
        for number, dealer in enumerate((old, new)):
            dealer.queue([b"", str(number).encode()])
            dealer.flush()
        stand.until(lambda: sum(map(len, stand.heard.values())) == 2)
        stand.listener.change_key(first)
        assert connected(stand, dial(first.public)) is None
        assert not stand.ended.keys() & {one for one, heard in stand.heard.items() if heard}


def test_nobody_reaches_the_listener_that_stands_in_for_one_with_an_old_key() -> None:
    with closing(unreachable_listener()) as listening:
        with pytest.raises(TimeoutError):
            socket.create_connection(listening.getsockname(), 0.3)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_two_listeners_of_a_process_ask_their_own_rules() -> None:
    pair, client = make_pair(), make_pair()
    open_, closed = (
        Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(pair, lambda key, let=let: let), limit=_LIMIT))  # type: ignore[misc]
        for let in (True, False)
    )
    with closing(open_.listener), closing(closed.listener):
        for stand, let in ((open_, True), (closed, False), (open_, True)):
            dealer = DealerConnection(stand.listener.endpoint, curve=ClientCurve(pair.public, client))
            with closing(dealer):
                assert (connected(stand, dealer) is None) == let


def test_nobody_there_is_told_as_no_connection() -> None:
    dealer = DealerConnection(f"tcp://127.0.0.1:{free_port()}")
    with closing(dealer):
        while select.select([dealer.fd], [], [], 20)[0]:
            try:
                dealer.receive()
            except NotConnected:
                return
    raise AssertionError("nothing was told")


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://no.such.name.invalid", "udp://127.0.0.1:9", "x"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is no endpoint"):
        DealerConnection(endpoint)


def test_sockets_that_were_closed_leave_no_descriptors() -> None:
    def once() -> None:
        stand = Stand(RouterListener("127.0.0.1", 0, curve=ServerCurve(pair), limit=_LIMIT))
        with (
            closing(stand.listener),
            closing(DealerConnection(stand.listener.endpoint, curve=ClientCurve(pair.public, pair))) as dealer,
        ):
            assert connected(stand, dealer) is None

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    pair = make_pair()
    once()
    before = descriptors()
    for _ in range(20):
        once()
    # libzmq closes its sockets in a thread of its own.
    deadline = time.monotonic() + 10
    while descriptors() > before + 5:
        assert time.monotonic() < deadline, "descriptors are left"
        time.sleep(0.02)


def test_a_router_that_is_dialled_and_does_not_end_its_message_is_measured() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        dealer = DealerConnection(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with closing(dealer), closing(server.accept()[0]) as peer:
            peer.sendall(opening(b"ROUTER"))
            deadline = time.monotonic() + 20
            while not dealer.ready:
                assert time.monotonic() < deadline
                dealer.receive()
            dealer.inspect()
            before = dealer.unfinished
            peer.sendall(b"\x03" + struct.pack(">Q", 3 * MIB) + bytes(2 * MIB))
            while dealer.unfinished < before + 2 * MIB:
                assert time.monotonic() < deadline
                dealer.inspect()
            peer.sendall(bytes(MIB) + b"\x00\x00")
            while not dealer.receive():
                assert time.monotonic() < deadline
            dealer.inspect()
            assert dealer.unfinished == 0
