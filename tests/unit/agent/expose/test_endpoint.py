"""The endpoint at which jobs report ports survives any bytes with bounded memory and connections. Fixed seeds."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket as gevent_socket

from prouter.agent.expose import endpoint as module
from prouter.agent.expose.endpoint import PATH, PortEndpoint, ReportKeys
from prouter.errors import InvalidRequest
from tests.support.keeper import until

GOOD = f"GET {PATH}?job_id=j&port=80 HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Stand(PortEndpoint):
    """An endpoint that remembers what was reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int]] = []
        self.keys: list[str] = []
        super().__init__(self._note)

    def _note(self, uid: str, port: int, key: str) -> None:
        self.reports.append((uid, port))
        self.keys.append(key)
        if uid == "surrogate":
            raise InvalidRequest("no job '\udcff'")

    def connect(self) -> socket.socket:
        connection: socket.socket = gevent_socket.create_connection(("127.0.0.1", self._port), timeout=10)
        return connection

    def talk(self, data: bytes) -> bytes:
        """All that is answered to these bytes until the endpoint closes."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = bytearray()
            try:
                while received := connection.recv(65536):
                    answer += received
            except ConnectionResetError:
                pass  # More was sent than is read.
            return bytes(answer)


@pytest.fixture
def stand() -> Iterator[Stand]:
    stand = Stand()
    stand.open()
    yield stand
    stand.close()
    assert not stand._connections


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"\r\n\r\n\n\r\n", None),
        (b"GET " + PATH.encode(), None),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\xff\r\n\r\n", 400),
        (b"GET  /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\n\r\n", 400),
        (b"GET /x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"POST " + GOOD[4:], 405),
        (b"get " + GOOD[4:], 405),
        (b"GET http://[x/y?port=1 HTTP/1.1\r\n\r\n", 400),
        (f"GET http://127.0.0.1:1{PATH}?job_id=j&port=80 HTTP/1.1\r\n\r\n".encode(), 200),
        (f"GET {PATH}/?port=80&job_id=j HTTP/1.0\n\n".encode(), 200),
        (f"GET {PATH}?job_id=%FF%00&port=80 HTTP/1.1\r\n\r\n".encode(), 200),
        (f"GET {PATH}?job_id=surrogate&port=80 HTTP/1.1\r\n\r\n".encode(), 400),
        (f"GET {PATH}?job_id=j&port=80&port=81 HTTP/1.1\r\n\r\n".encode(), 400),
        (f"GET {PATH}?job_id=j&port={'9' * 5000} HTTP/1.1\r\n\r\n".encode(), 400),
        (f"GET {PATH}?{'&'.join('a' * 50)} HTTP/1.1\r\n\r\n".encode(), 400),
        (b"\r\n\r\n" + GOOD, 200),
        (GOOD[:-2] + b"X" * 9000 + b"\r\n\r\n", 431),
        (b"G" * 9000, 431),
        (GOOD[:-2] + b"Content-Length: 5\r\n\r\nGET /", 200),
        (GOOD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200),
    ],
)
def test_every_request_is_answered_once_or_dropped(stand: Stand, data: bytes, status: int | None) -> None:
    answer = stand.talk(data)
    assert answer[:13] == (b"" if status is None else f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert stand.talk(GOOD).endswith(b"OK")


def test_pipelined_reports_are_all_answered(stand: Stand) -> None:
    assert stand.talk(GOOD * 50).count(b"HTTP/1.1 200 OK") == 50
    assert stand.reports == [("j", 80)] * 50


def test_a_connection_has_a_bounded_number_of_requests(stand: Stand) -> None:
    assert 0 < stand.talk(GOOD * 1000).count(b"HTTP/1.1 200 OK") <= module._REQUESTS


def test_a_body_is_never_taken_for_a_request(stand: Stand) -> None:
    stand.talk(GOOD[:-2] + f"Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD.replace(b"80", b"81"))
    assert stand.reports == [("j", 80)]


def test_a_head_that_comes_byte_by_byte_is_read_and_one_that_never_ends_is_cut_off(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand.connect() as connection:
        for at in range(len(GOOD)):
            connection.sendall(GOOD[at : at + 1])
            gevent.sleep(0)
        assert connection.recv(4096).endswith(b"OK")
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with stand.connect() as connection, gevent.Timeout(10):
        connection.sendall(GOOD[:20])
        assert connection.recv(4096) == b""


def test_random_bytes_and_broken_requests_leave_it_as_it_was(stand: Stand) -> None:
    rng = random.Random(20261129)
    for _ in range(600):
        data = bytearray(GOOD * rng.randint(1, 3))
        for _ in range(rng.randint(0, 12)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 20)]
                case 2:
                    data[at:at] = rng.randbytes(rng.randint(1, 40))
                case _:
                    data[at:at] = rng.choice([b"\r\n", b"\n\n", b"%", b"&port=", b"\0", b" ", b"?" * 300])
            if not data:
                data = bytearray(b"\n")
        answer = stand.talk(bytes(data))
        assert not answer or answer.startswith(b"HTTP/1.1 ")
    for size in (1, 100, 8192, 8193, 300_000):
        stand.talk(rng.randbytes(size))
    assert stand.talk(GOOD).endswith(b"OK")
    until(lambda: not stand._connections)


def test_the_oldest_idle_connections_make_room_for_a_report(stand: Stand) -> None:
    with gevent.Timeout(30):
        held = [stand.connect() for _ in range(2 * module._CONNECTIONS)]
        for connection in held:
            connection.sendall(b"GET /")
        assert stand.talk(GOOD).endswith(b"OK")
        assert held[0].recv(1) == b""
        assert len(stand._connections) <= module._CONNECTIONS + 1
    for connection in held:
        connection.close()
    until(lambda: not stand._connections)


def test_what_a_connection_may_leave_in_memory_is_bounded(stand: Stand) -> None:
    """A client that sends without end and reads nothing is answered and cut off."""
    with stand.connect() as connection, gevent.Timeout(20):
        sent = 0
        try:
            while sent < 64 << 20:
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass
        assert sent < 64 << 20
    assert stand.talk(GOOD).endswith(b"OK")


def test_a_report_has_the_key_of_its_url(stand: Stand) -> None:
    for path, key in ((f"{PATH}/k", "k"), (f"{PATH}/k/", "k"), (PATH, ""), (f"{PATH}/k/l", "k/l")):
        assert stand.talk(f"GET {path}?job_id=j&port=80 HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200")
        assert stand.keys.pop() == key
    for path in (f"{PATH}s/k", "/k", f"/x{PATH}/k"):
        assert stand.talk(f"GET {path}?job_id=j&port=80 HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
    assert not stand.keys


def test_a_key_is_good_for_one_job_and_outlives_the_agent() -> None:
    keys = ReportKeys()
    keys.check("a", keys.of("a"))
    ReportKeys(keys.secret).check("a", keys.of("a"))
    for uid, key in (("b", keys.of("a")), ("a", ""), ("a", keys.of("a")[:-1]), ("a", ReportKeys().of("a"))):
        with pytest.raises(InvalidRequest, match="DA__PAGENT__JOB_ENDPOINT"):
            keys.check(uid, key)
    with pytest.raises(InvalidRequest):
        keys.check("\udcff", "")
