"""The broker's listener with libzmq's DEALERs at the other end: keys, refusals, a key that changes, hostile peers."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

import pytest
import zmq

from prouter.errors import ProtocolError
from prouter.keys.files import make_pair
from prouter.transport.zeromq.context import context
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection
from prouter.transport.zmtp.server_keys import ServerCurve
from prouter.transport.zmtp.tcp_listener import TcpListener
from prouter.transport.zmtp.wire import Wire
from tests.support.curve_client import GREETING, CurveClient

_LIMIT = 64 * 1024


class Stand:
    """A listener and what it has told."""

    def __init__(self, listener: TcpListener) -> None:
        self.listener = listener
        self.connections: list[Wire] = []
        self.heard: dict[Wire, list[list[bytes]]] = {}
        self.ended: dict[Wire, Exception] = {}

    def turn(self) -> None:
        for connection in self.listener.accept():
            self.connections.append(connection)
            self.heard[connection] = []
        for connection in self.connections:
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
            poll = select.poll()
            poll.register(self.listener.fd, select.POLLIN)
            for connection in self.connections:
                if connection not in self.ended:
                    poll.register(connection.fd, select.POLLIN)
            poll.poll(2)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listener.endpoint.removeprefix("tcp://").rpartition(":")
        return host.strip("[]"), int(port)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.listener.close()


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


def listening(curve: ServerCurve | None) -> Stand:
    return Stand(TcpListener("127.0.0.1", 0, curve=curve, limit=_LIMIT))


def test_only_accepted_keys_get_in_and_are_known_by_them(caplog: pytest.LogCaptureFixture) -> None:
    pair, known, unknown = make_pair(), make_pair(), make_pair()
    with closing(listening(ServerCurve(pair, lambda key: key == known.public))) as stand, ExitStack() as stack:

        def dial(curve: ClientCurve) -> DealerConnection:
            return stack.enter_context(closing(DealerConnection(stand.listener.endpoint, b"me", curve=curve)))

        for _ in range(12):
            refused = dial(ClientCurve(pair.public, unknown))
            assert "does not accept this end's key" in str(connected(stand, refused))
        assert f"key_refused key={unknown.public} address=127.0.0.1" in caplog.text
        welcome = dial(ClientCurve(pair.public, known))
        assert connected(stand, welcome) is None
        welcome.queue([b"", b"hello"])
        welcome.flush()
        stand.until(lambda: any(stand.heard.values()))
        (heard,) = [connection for connection in stand.connections if stand.heard[connection]]
        assert heard.peer_key == known.public
        assert heard.identity.startswith(b"me")


@pytest.mark.parametrize("which", ["wrong key", "none", "encryption that nobody wants"])
def test_who_does_not_speak_the_listener_s_mechanism_learns_why(which: str) -> None:
    with closing(listening(None if which.startswith("enc") else ServerCurve(make_pair()))) as stand:
        curve = None if which == "none" else ClientCurve(make_pair().public, make_pair())
        with closing(DealerConnection(stand.listener.endpoint, curve=curve)) as dealer:
            failure = connected(stand, dealer)
            assert isinstance(failure, ProtocolError)
            expected = {"wrong key": "may be wrong", "none": "wants encryption"}.get(which, "does not encrypt")
            assert expected in str(failure)
        stand.until(lambda: len(stand.ended) == len(stand.connections) == 1)
        assert not any(stand.heard.values())


def test_a_mistake_in_the_decision_lets_nobody_in() -> None:
    def accepts(key: str) -> bool:
        raise RuntimeError("a mistake")

    pair = make_pair()
    with (
        closing(listening(ServerCurve(pair, accepts))) as stand,
        closing(DealerConnection(stand.listener.endpoint, curve=ClientCurve(pair.public, pair))) as dealer,
    ):
        assert "does not accept" in str(connected(stand, dealer))


def test_a_new_server_key_counts_for_new_connections_and_old_ones_live_on() -> None:
    first, second = make_pair(), make_pair()
    with closing(listening(ServerCurve(first))) as stand, ExitStack() as stack:
        endpoint = stand.listener.endpoint

        def dial(key: str) -> DealerConnection:
            return stack.enter_context(closing(DealerConnection(endpoint, curve=ClientCurve(key, make_pair()))))

        old, on_its_way = dial(first.public), dial(first.public)
        assert connected(stand, old) is None
        stand.until(lambda: len(stand.connections) == 2)
        stand.listener.change_key(second)
        assert connected(stand, on_its_way) is None, "a handshake that has begun ends with the key that it began with"
        new = dial(second.public)
        assert connected(stand, new) is None
        assert isinstance(connected(stand, dial(first.public)), ProtocolError)
        for number, dealer in enumerate((old, on_its_way, new)):
            dealer.queue([b"", str(number).encode()])
            dealer.flush()
        stand.until(lambda: sum(map(len, stand.heard.values())) == 3)
        stand.listener.change_key(first)
        assert connected(stand, dial(first.public)) is None
    with closing(listening(None)) as stand:
        stand.listener.change_key(second)
        with closing(DealerConnection(stand.listener.endpoint)) as dealer:
            assert connected(stand, dealer) is None


def test_a_client_that_left_while_it_waited_is_not_worth_a_handshake() -> None:
    pair = make_pair()
    with closing(listening(ServerCurve(pair, lambda key: pytest.fail("nobody is there")))) as stand:
        with socket.create_connection(stand.address) as sock:
            sock.sendall(GREETING + CurveClient(pair.public, make_pair()).hello())
        stand.until(lambda: stand.ended)
        assert "closed by the other end" in str(next(iter(stand.ended.values())))


def test_heartbeats_of_libzmq_pass_over_an_encrypted_connection() -> None:
    pair = make_pair()
    with closing(listening(ServerCurve(pair))) as stand:
        dealer = context().socket(zmq.DEALER)
        try:
            client = make_pair()
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, 10)
            dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
            dealer.setsockopt_string(zmq.CURVE_SERVERKEY, pair.public)
            dealer.setsockopt_string(zmq.CURVE_PUBLICKEY, client.public)
            dealer.setsockopt_string(zmq.CURVE_SECRETKEY, client.secret)
            dealer.connect(stand.listener.endpoint)
            dealer.send_multipart([b"", b"first"])
            stand.until(lambda: any(stand.heard.values()))
            (connection,) = stand.connections
            connection.trust()
            boxes = connection._protocol._heard  # type: ignore[attr-defined]
            stand.until(lambda: connection._protocol._heard > boxes + 3)  # type: ignore[attr-defined]
            dealer.send_multipart([b"", b"second"])
            stand.until(lambda: len(stand.heard[connection]) == 2)
        finally:
            dealer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
        b"\xff" + bytes(63) + b"x" * 500,
        os.urandom(700),
        b"\x16\x03\x01",
        b"\x01\x00",
        b"\xff" + bytes(8) + b"\x7f\x01\x00",
        GREETING + b"\x04\xc8\x05HELLO\x01\x00" + os.urandom(192),
        GREETING + b"\x06" + struct.pack(">Q", 2**62),
    ],
    ids=["http", "greeting", "random", "tls", "zmtp 1", "zmtp 2", "hello", "endless"],
)
@pytest.mark.parametrize("encrypted", [False, True])
def test_garbage_ends_its_own_connection_and_others_are_served(encrypted: bool, garbage: bytes) -> None:
    pair = make_pair()
    with closing(listening(ServerCurve(pair) if encrypted else None)) as stand, ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(closing(socket.create_connection(stand.address, 5)))
            with suppress(OSError):
                sock.sendall(garbage)
        stand.until(lambda: len(stand.ended) == 5)
        assert all(isinstance(error, (ProtocolError, OSError)) for error in stand.ended.values())
        curve = ClientCurve(pair.public, make_pair()) if encrypted else None
        dealer = stack.enter_context(closing(DealerConnection(stand.listener.endpoint, curve=curve)))
        assert connected(stand, dealer) is None


def test_it_listens_on_ipv6_and_says_where() -> None:
    try:
        stand = Stand(TcpListener("::1", 0, limit=_LIMIT))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(stand):
        assert stand.listener.endpoint.startswith("tcp://[::1]:")
        with closing(DealerConnection(stand.listener.endpoint)) as dealer:
            assert connected(stand, dealer) is None
