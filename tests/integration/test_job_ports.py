"""``JOB/tcp/PORT``: TCP to ports of a job and to no others, raw and as a WebSocket."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.job_manager import SERVER, python
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.raw_http import Raw
from tests.support.websocket_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawWebSocket, close, frame

SIZE = 12 * 1024 * 1024
DATA = os.urandom(1024 * 1024) * (SIZE // 1024 // 1024)
UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


class Ports:
    """A job that listens, and connections to it.

    Attributes:
        path: of the job.
        ports: that it listens on, the second one for IPv6 only, if there is IPv6.
    """

    def __init__(self, router: Router, agent: Agent, script: Path) -> None:
        self.router = router
        self.path = router.create(agent.uid, "tcp")
        router.start(self.path, [sys.executable, str(script)], port_expected_count=0)
        self.ports: list[int] = json.loads(self.wait_file("ports"))
        self.port = self.ports[0]

    def _file(self, name: str) -> requests.Response:
        return self.router.get(f"{self.path}/file/{name}")

    def wait_file(self, name: str) -> bytes:
        """The content of a file, once there is any."""
        return wait_until(lambda: self._file(name).content if self._file(name).ok else b"")

    def raw(self, first: bytes, port: int | str | None = None, headers: str = UPGRADE) -> Raw:
        """A raw connection; `first` goes in the same segment as the request."""
        raw = Raw(self.router.url)
        raw.request("GET", f"{self.path}/tcp/{port or self.port}", headers, first)
        head = raw.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"\r\nUpgrade: tcp\r\n" in head
        return raw

    @contextmanager
    def websocket(self, first: bytes) -> Iterator[ClientConnection]:
        url = self.router.url.replace("http", "ws", 1)
        with connect(f"{url}{self.path}/tcp/{self.port}", max_size=None) as opened:
            opened.send(first)
            yield opened

    def frames(self, first: bytes) -> RawWebSocket:
        raw = RawWebSocket(self.router.url, f"{self.path}/tcp/{self.port}")
        assert b"HTTP/1.1 101 Switching Protocols" in raw.answer
        raw.send(frame(BINARY, first))
        return raw

    def refusal(self, port: int | str, headers: str = UPGRADE) -> tuple[int, str]:
        """Status and code of the error for a connection."""
        fields = dict(line.split(": ", 1) for line in headers.splitlines())
        answer = self.router.get(f"{self.path}/tcp/{port}", headers=fields)
        return answer.status_code, answer.headers["X-PRouter-Error"]


@pytest.fixture(scope="module")
def it(router: Router, agent: Agent, jobs: Path) -> Iterator[Ports]:
    made = Ports(router, agent, jobs / "tcp_server.py")
    yield made
    router.post(made.path + "/remove")


# -- raw --------------------------------------------------------------------------------------------------------


def test_bytes_pass_both_ways_whole_and_in_order(it: Ports) -> None:
    with it.raw(b"echo\n") as raw:
        raw.sock.settimeout(60)
        pieces = [DATA[start : start + 200_000] for start in range(0, SIZE, 200_000)]
        received = b""
        for piece in pieces:
            raw.send(piece)
            received += raw.read_exactly(len(piece))
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.read_to_end() == b""
        assert not raw.cut
    assert received == DATA


def test_either_side_may_finish_first(it: Ports) -> None:
    with it.raw(b"digest\n") as raw:
        raw.send(DATA)
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.read_to_end() == hashlib.sha256(DATA).hexdigest().encode()
    with it.raw(b"end\n") as raw:
        assert raw.read_to_end() == b"all"
        raw.send(b"later")
        raw.sock.shutdown(socket.SHUT_WR)
        assert it.wait_file("late") == b"later."


def test_a_reset_is_passed_on(it: Ports) -> None:
    with it.raw(b"reset\n") as raw:
        assert raw.read_to_end() == b""
        assert raw.cut


def test_a_client_that_leaves_ends_the_jobs_connection(it: Ports) -> None:
    with it.raw(b"ended\n"):
        pass
    assert it.wait_file("ended") == b"."


def test_a_slow_reader_delays_nobody(it: Ports) -> None:
    with it.raw(b"send 300000000\n") as slow, it.raw(b"echo\n") as other:
        slow.read_exactly(1)
        other.send(b"hello")
        assert other.read_exactly(5) == b"hello"


def test_connections_survive_the_broker(launch: Callable[..., Any], jobs: Path) -> None:
    router = launch(start_router, workers=1)
    it = Ports(router, launch(start_agent, router), jobs / "tcp_server.py")
    with it.raw(b"echo\n") as raw, it.frames(b"echo\n") as opened:
        raw.send(DATA[:100_000])
        old = it.router.child("broker")
        os.kill(old, signal.SIGKILL)
        raw.send(DATA[100_000:300_000])
        opened.send(frame(BINARY, b"x"))
        wait_until(lambda: it.router.child("broker") != old)
        for connection in (raw, opened):
            connection.sock.settimeout(30)
        assert raw.read_exactly(300_000) == DATA[:300_000]
        assert opened.read_frame() == (0x80 | BINARY, b"x")


# -- WebSocket --------------------------------------------------------------------------------------------------


def test_binary_messages_carry_the_bytes_both_ways(it: Ports) -> None:
    with it.websocket(b"echo\n") as opened:
        received = b""
        for start in range(0, SIZE, 500_000):
            piece = DATA[start : start + 500_000]
            opened.send(piece)
            wanted = len(received) + len(piece)
            while len(received) < wanted:
                message = opened.recv(timeout=30)
                assert isinstance(message, bytes)
                received += message
    assert received == DATA


def test_the_end_of_the_jobs_bytes_closes_the_websocket(it: Ports) -> None:
    with it.websocket(b"send 600000\n") as opened:
        assert sum(len(message) for message in opened) == 600_000
        assert (opened.close_code, opened.close_reason) == (1000, "")


def test_a_client_that_closes_ends_the_jobs_input_in_order(it: Ports) -> None:
    with it.frames(b"end\n") as raw:
        assert raw.read_frame() == (0x80 | BINARY, b"all")
    with it.frames(b"end\n") as raw:
        raw.send(frame(BINARY, b"1") + frame(BINARY, b"2") + close())
        assert raw.read_frame()[0] in (0x80 | BINARY, 0x80 | CLOSE)
        wait_until(lambda: it.wait_file("late") == b"12.")


def test_a_reset_is_an_error_for_the_websocket(it: Ports) -> None:
    with it.websocket(b"reset\n") as opened, pytest.raises(ConnectionClosed) as closed:
        opened.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_fragments_pings_and_empty_messages_do_not_disturb_the_bytes(it: Ports) -> None:
    with it.frames(b"ec") as raw:
        raw.send(frame(BINARY, b"h", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"o", fin=False))
        raw.send(frame(CONTINUATION, b"\na") + frame(BINARY) + frame(PONG, b"unasked") + frame(BINARY, b"b"))
        assert raw.read_frame() == (0x80 | PONG, b"p")
        received = b""
        while len(received) < 2:
            first, payload = raw.read_frame()
            assert first == 0x80 | BINARY
            received += payload
        assert received == b"ab"
        raw.send(close(1000, b"enough"))
        assert raw.read_frame() == (0x80 | CLOSE, (1000).to_bytes(2, "big") + b"enough")
        assert raw.read_to_end() == b""


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"hi"), 1003),
        (frame(BINARY, b"hi", masked=False), 1002),
        (frame(BINARY, b"hi", reserved=4), 1002),
        (frame(CONTINUATION, b"hi"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(BINARY, claimed=2**62), 1009),
        (frame(BINARY, claimed=1024 * 1024 + 1), 1009),
        (frame(3, b"hi"), 1002),
    ],
)
def test_what_is_no_binary_message_closes_the_websocket(it: Ports, sent: bytes, code: int) -> None:
    with it.frames(b"hold\n") as raw:
        raw.send(sent)
        first, payload = raw.read_frame()
        assert (first, int.from_bytes(payload[:2], "big")) == (0x80 | CLOSE, code)
        assert raw.read_to_end() == b""


def test_compression_is_not_accepted_and_the_protocol_binary_is(it: Ports) -> None:
    offers = "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: x, binary\r\n"
    with RawWebSocket(it.router.url, f"{it.path}/tcp/{it.port}", offers) as raw:
        assert b"Sec-WebSocket-Protocol: binary" in raw.answer
        assert not [line for line in raw.answer if line.lower().startswith(b"sec-websocket-extensions")]


def test_a_flood_of_pings_from_a_client_that_reads_nothing_is_bounded(it: Ports) -> None:
    with it.frames(b"echo\n") as raw:
        raw.sock.settimeout(30)
        for _ in range(40):
            raw.send(frame(PING, b"p" * 100) * 2000)
        raw.send(frame(PING, b"last") + frame(BINARY, b"x"))
        seen = [raw.read_frame()]
        while (0x80 | PONG, b"last") not in seen[-3:] or not any(one[0] == 0x80 | BINARY for one in seen):
            seen.append(raw.read_frame())
        assert len(seen) < 80_000


# -- which ports ------------------------------------------------------------------------------------------------


def test_ports_of_others_are_none_of_the_jobs(it: Ports, router: Router, agent: Agent, jobs: Path) -> None:
    other = Ports(router, agent, jobs / "tcp_server.py")
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.create_server(("127.0.0.1", 0)) as closed:
        closed.close()
        ports = [other.port, ours.getsockname()[1], int(router.url.rpartition(":")[2]), 1]
        for port in ports:
            assert it.refusal(port) == (404, "no_such_port")
    for port in (0, 65536, "0080", "http", "%38%30", "a" * 300, "-1", "8080x"):
        assert it.refusal(port)[0] in (404, 502)
    answer = router.get(f"{it.path}/tcp/1", headers={"Connection": "Upgrade", "Upgrade": "tcp"})
    assert re.search(rf"it listens only on .*\b{it.port}\b", answer.json()["detail"])
    router.post(other.path + "/remove")


def test_a_port_that_changes_hands_is_the_jobs_no_more(router: Router, agent: Agent, jobs: Path) -> None:
    job = Ports(router, agent, jobs / "tcp_server.py")
    with job.raw(b"echo\n") as raw:
        router.post(job.path + "/signal", {"signal": "USR1"})
        wait_until(lambda: router.get(f"{job.path}/file/closed").ok)
        assert job.refusal(job.port) == (404, "no_such_port")
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", job.port))
            stranger.listen()
            stranger.setblocking(False)
            assert [job.refusal(job.port) for _ in range(3)] == [(404, "no_such_port")] * 3
            with pytest.raises(BlockingIOError):
                stranger.accept()
        raw.send(b"still")
        assert raw.read_exactly(5) == b"still"
        router.post(job.path + "/remove")
        raw.read_to_end()
    assert job.refusal(job.port)[0] == 424


def test_a_port_for_ipv6_only_is_reached(it: Ports) -> None:
    if len(it.ports) < 2:
        pytest.skip("this machine has no IPv6")
    with it.raw(b"echo\nx", it.ports[1]) as raw:
        assert raw.read_exactly(1) == b"x"


@pytest.mark.parametrize("port", ["assign", "unix"])
def test_http_is_the_jobs_server_wherever_it_is(router: Router, agent: Agent, port: str) -> None:
    path = router.create(agent.uid)
    address = "{socket}" if port == "unix" else "{port}"
    router.start(path, python(SERVER, address), expose={"port": port})
    with Raw(router.url) as raw:
        raw.request("GET", f"{path}/tcp/http", UPGRADE, b"GET /x HTTP/1.0\r\n\r\n")
        assert b" 101 " in raw.read_until(b"\r\n\r\n")
        assert raw.read_to_end().endswith(b"/x")
    router.post(path + "/remove")


# -- requests ---------------------------------------------------------------------------------------------------


def test_without_an_upgrade_the_answer_names_the_protocols(it: Ports) -> None:
    answer = it.router.get(f"{it.path}/tcp/{it.port}")
    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "tcp, websocket"
    assert "upgrade" in answer.headers["Connection"].lower()
    for headers in ("Connection: Upgrade\r\nUpgrade: h2c\r\n", "Upgrade: tcp\r\n"):
        assert it.refusal(it.port, headers) == (426, "upgrade_required")
    assert it.router.post(f"{it.path}/tcp/{it.port}").status_code == 405
    assert it.refusal(it.port, f"{UPGRADE}Content-Length: 3\r\n") == (400, "invalid_request")
    handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    for wrong in ("", "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"):
        assert it.refusal(it.port, handshake + wrong) == (400, "invalid_request")


def test_pages_of_other_sites_and_other_host_names_connect_to_nothing(it: Ports) -> None:
    for fields in (
        "Origin: http://evil.example\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ):
        assert it.refusal(it.port, UPGRADE + fields) == (403, "cross_site")
    assert it.refusal(it.port, f"{UPGRADE}Host: evil.example\r\nOrigin: http://evil.example\r\n") == (
        421,
        "unknown_host",
    )


def test_connections_are_counted(it: Ports) -> None:
    def count() -> float:
        lines = it.router.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("prouter_worker_requests_total") and 'status="1xx"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    before = count()
    with it.raw(b"echo\n"):
        wait_until(lambda: count() > before)
