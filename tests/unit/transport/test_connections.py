"""What both transports promise: one suite for ZMTP on the own loop over unix sockets and for pyzmq over tcp."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_PART
from prouter.keys.files import make_pair
from prouter.transport.connection import Connection, Listener
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection
from prouter.transport.zeromq.listener import RouterListener
from prouter.transport.zmtp.server_keys import ServerCurve
from prouter.transport.zmtp.tcp_listener import TcpListener
from prouter.transport.zmtp.unix_listener import UnixListener
from prouter.transport.zmtp.wire import Wire

_LIMIT = 64 * 1024
_PATIENCE = 20.0


class Stand:
    """A listener and what dials it, driven by `until`."""

    def __init__(self, listener: Listener, dial: Callable[[], Connection]) -> None:
        self.listener = listener
        self._dial = dial
        self.dialled: list[Connection] = []
        self.accepted: list[Connection] = []
        self.heard: dict[Connection, list[list[bytes]]] = {}
        self.ended: dict[Connection, Exception] = {}
        self.deaf: set[Connection] = set()
        """Connections that are not received from."""

    def dial(self) -> Connection:
        connection = self._dial()
        self.dialled.append(connection)
        self.heard[connection] = []
        return connection

    def pair(self) -> tuple[Connection, Connection]:
        """A dialled connection and the accepted one that is its other end."""
        dialled = self.dial()
        before = len(self.accepted)
        self.until(lambda: dialled.ready)
        dialled.queue([b"", b"hello"])
        self.until(lambda: len(self.accepted) > before and bool(self.heard[self.accepted[-1]]))
        accepted = self.accepted[-1]
        assert self.texts(accepted) == [[b"", b"hello"]]
        self.heard[accepted].clear()
        return dialled, accepted

    def texts(self, connection: Connection) -> list[list[bytes]]:
        return [[bytes(part) for part in parts] for parts in self.heard[connection]]

    def until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE
        ticked = 0.0
        while not reached():
            now = time.monotonic()
            assert now < deadline, "it did not happen"
            if now - ticked > 0.05:
                ticked = now
                self.listener.tick(now)
            self._turn()
            if not reached():
                self._wait()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.listener.fd, select.POLLIN)
        waiting = self.listener.more
        for connection in (*self.dialled, *self.accepted):
            waiting = waiting or (connection.more and connection not in self.deaf)
            if connection.fd >= 0 and connection not in self.ended:
                reading = 0 if connection in self.deaf else select.POLLIN
                poll.register(connection.fd, reading | (select.POLLOUT if connection.blocked else 0))
        poll.poll(0 if waiting else 20)

    def _turn(self) -> None:
        for connection in self.listener.accept():
            self.accepted.append(connection)
            self.heard[connection] = []
        self.listener.arrived()
        for connection in (*self.dialled, *self.accepted):
            if connection in self.ended:
                continue
            try:
                if connection not in self.deaf:
                    self.heard[connection] += connection.receive()
            except (OSError, ProtocolError) as error:
                self.ended[connection] = error
                connection.close()
                continue
            with suppress(OSError):
                connection.flush()

    def close(self) -> None:
        for connection in (*self.dialled, *self.accepted):
            connection.close()
        self.listener.close()


@pytest.fixture(params=["local", "zeromq", "zeromq curve", "tcp", "tcp curve"])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    listener: Listener
    if request.param == "local":
        path = tmp_path / "listener.sock"
        listener = UnixListener(path, limit=_LIMIT)

        def dial() -> Connection:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            return Wire(sock, b"DEALER", b"ROUTER", b"somebody")

    else:
        pair = make_pair()
        kind, _, encrypted = request.param.partition(" ")
        curve = ClientCurve(pair.public, make_pair()) if encrypted else None
        server_curve = ServerCurve(pair) if encrypted else None
        listening = RouterListener if kind == "zeromq" else TcpListener
        listener = listening("127.0.0.1", 0, curve=server_curve, limit=_LIMIT)
        endpoint = listener.endpoint

        def dial() -> Connection:
            return DealerConnection(endpoint, b"somebody", curve=curve)

    made = Stand(listener, dial)
    yield made
    made.close()


def test_messages_cross_in_both_directions_and_in_order(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    accepted.trust()
    there = [[b"", str(number).encode()] for number in range(3000)]
    for message in there:
        dialled.queue(message)
        accepted.queue([b"back", *message])
    stand.until(lambda: len(stand.heard[accepted]) == 3000 and len(stand.heard[dialled]) == 3000)
    assert stand.texts(accepted) == there
    assert stand.texts(dialled) == [[b"back", *message] for message in there]


def test_large_parts_arrive_whole(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    accepted.trust()
    message = [b"route", b"block", bytes(range(256)) * 4096, b"", b"x" * (3 * 1024 * 1024)]
    for _ in range(5):
        dialled.queue(message)
        accepted.queue(message)
    stand.until(lambda: len(stand.heard[accepted]) == 5 and len(stand.heard[dialled]) == 5)
    assert stand.texts(accepted) == stand.texts(dialled) == [message] * 5


def test_the_other_end_s_routing_id_is_known(stand: Stand) -> None:
    _, first = stand.pair()
    _, second = stand.pair()
    assert first.identity.startswith(b"somebody")
    assert second.identity.startswith(b"somebody")


def test_the_end_is_told_after_the_messages_before_it(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    accepted.trust()
    for number in range(200):
        dialled.queue([b"", str(number).encode(), b"y" * 5000])
    stand.until(lambda: dialled.sent == dialled.taken)
    dialled.finish(5)
    stand.ended[dialled] = OSError("this end closed")
    stand.until(lambda: accepted in stand.ended)
    assert len(stand.heard[accepted]) == 200
    assert isinstance(stand.ended[accepted], OSError)


def test_a_connection_that_is_closed_ends_for_the_other_side_and_no_other(stand: Stand) -> None:
    first, first_accepted = stand.pair()
    second, second_accepted = stand.pair()
    first_accepted.trust()
    second_accepted.trust()
    first_accepted.close()
    stand.ended[first_accepted] = OSError("this end closed")
    stand.until(lambda: first in stand.ended)
    second.queue([b"", b"still there"])
    stand.until(lambda: stand.heard[second_accepted])
    assert second not in stand.ended


def test_last_words_leave_before_the_end(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    accepted.queue([b"", b"no"])
    accepted.flush()
    accepted.finish(0)
    stand.ended[accepted] = OSError("this end closed")
    stand.until(lambda: dialled in stand.ended)
    assert stand.texts(dialled) == [[b"", b"no"]]


@pytest.mark.parametrize(
    "messages",
    [[[b"", b"x" * (_LIMIT + 1)]], [[b"", b"x"]] * 500, [[b"x"] * 20_000]],
    ids=["large", "many", "parts"],
)
def test_an_unauthenticated_connection_that_sends_much_breaks_its_limits(
    stand: Stand, messages: list[list[bytes]]
) -> None:
    dialled = stand.dial()
    stand.until(lambda: dialled.ready)
    for message in messages:
        dialled.queue(message)
    with suppress(OSError):
        dialled.flush()
    # Who uses a connection looks at `more`: an unauthenticated one may say one thing.
    stand.until(lambda: stand.accepted and (stand.accepted[0] in stand.ended or stand.accepted[0].more))
    if stand.accepted[0] in stand.ended:
        assert isinstance(stand.ended[stand.accepted[0]], ProtocolError)
        assert len(stand.heard[stand.accepted[0]]) <= 64, "more than an introduction"


def test_a_peer_that_does_not_read_leaves_the_rest_with_the_sender(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    accepted.trust()
    stand.deaf.add(dialled)
    message = [b"", b"", b"m" * (1024 * 1024)]
    for _ in range(100):
        accepted.queue(message)
    stand.until(lambda: accepted.blocked)
    left = accepted.taken - accepted.sent
    assert left > 20 * 1024 * 1024
    stand.deaf.clear()
    stand.until(lambda: len(stand.heard[dialled]) == 100)
    assert accepted.taken == accepted.sent


def test_a_part_that_nobody_would_take_is_refused_where_it_is_made(stand: Stand) -> None:
    dialled, accepted = stand.pair()
    for connection in (dialled, accepted):
        with pytest.raises(ProtocolError):
            connection.queue([b"", bytes(MAX_PART + 1)])
        with pytest.raises(ProtocolError):
            connection.queue([b"", *[bytes(MAX_PART)] * 4])


def test_many_connections_at_once(stand: Stand) -> None:
    dialled = [stand.dial() for _ in range(50)]
    stand.until(lambda: all(one.ready for one in dialled))
    for number, one in enumerate(dialled):
        one.queue([b"", str(number).encode()])
    stand.until(lambda: sum(map(len, stand.heard.values())) == 50)
    assert len(stand.accepted) == 50
    for accepted in stand.accepted:
        accepted.queue(stand.heard[accepted][0])
    stand.until(lambda: all(stand.heard[one] for one in dialled))
    assert [stand.texts(one) for one in dialled] == [[[b"", str(number).encode()]] for number in range(50)]
    for one in dialled:
        one.close()
        stand.ended[one] = OSError("this end closed")
    stand.until(lambda: all(accepted in stand.ended for accepted in stand.accepted))


def test_nobody_is_accepted_after_the_listener_closed(stand: Stand) -> None:
    stand.pair()
    stand.listener.close()
    stand.listener.close()
    if isinstance(stand.listener, UnixListener):
        with pytest.raises(OSError):
            stand.dial()
