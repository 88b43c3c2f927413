"""Clients and jobs that disconnect at any point, and reused connections to jobs."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.raw_http import Raw, exchange

SECOND = 3.0
"""Seconds within which ends are passed on: by then no timeout has passed, and a busy machine has had its time."""
RESET = struct.pack("ii", 1, 0)


class Job:
    """A running job server and what the kernel knows of the connections to it."""

    def __init__(self, router: Router, agent: Agent, script: Path) -> None:
        self.router = router
        self.path = router.serve(agent.uid, script)
        self.root = self.path + "/http"
        (self.port,) = router.get(self.path + "/info").json()["ports"]

    def connections(self) -> int:
        """Connections that the agent holds open."""
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table][1:]
        return sum(int(row[2].rpartition(":")[2], 16) == self.port and row[3] == "01" for row in rows)

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = self.router.get(self.root + "/seen").json()
        return found

    def requests(self, path: str) -> int:
        return int(self.seen()["requests"].get(path, 0))

    def kill(self) -> None:
        self.router.post(self.path + "/signal", {"signal": "KILL"})


@pytest.fixture(scope="module")
def place(short_dir: Path) -> Iterator[tuple[Router, Agent, Path]]:
    """A router with one worker that listens on a unix socket as well, its agent, and that socket."""
    unix = short_dir / "gone.sock"
    router = start_router(short_dir / "gone", workers=1, control__unix=str(unix))
    try:
        agent = start_agent(short_dir / "gone-agent", router)
        try:
            yield router, agent, unix
        finally:
            agent.stop()
    finally:
        router.stop()


@pytest.fixture
def corner(place: tuple[Router, Agent, Path], jobs: Path) -> Job:
    return Job(place[0], place[1], jobs / "corner_server.py")


@pytest.fixture
def fast(place: tuple[Router, Agent, Path], jobs: Path) -> Job:
    return Job(place[0], place[1], jobs / "fast_server.py")


def test_long_polls_that_are_abandoned_leave_the_job(corner: Job) -> None:
    raws = [Raw(corner.router.url) for _ in range(20)]
    for raw in raws:
        raw.request("GET", corner.root + "/silent")
    wait_until(lambda: corner.connections() == 20)
    for raw in raws:
        raw.sock.close()
    wait_until(lambda: corner.connections() == 0, SECOND)


@pytest.mark.parametrize("size", [0, 50_000, 3_000_000])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_upload_that_is_abandoned_leaves_a_job_that_does_not_read(
    place: tuple[Router, Agent, Path], corner: Job, size: int, kind: str
) -> None:
    sock = socket.socket(socket.AF_UNIX) if kind == "unix" else socket.socket()
    with sock:
        sock.connect(str(place[2]) if kind == "unix" else ("127.0.0.1", int(corner.router.url.rpartition(":")[2])))
        head = f"POST {corner.root}/slow-read?ms=60000 HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"
        sock.sendall(head.encode())
        wait_until(lambda: corner.connections() == 1)
        sock.settimeout(0.3)
        sent = 0
        while sent < size:
            try:
                sent += sock.send(b"x" * 65536)
            except TimeoutError:
                break
    if sent < size:
        pytest.skip("this machine's unix sockets hold less")
    wait_until(lambda: corner.connections() == 0, 2 * SECOND)


def test_an_upload_that_breaks_while_all_buffers_are_full_leaves_the_job(corner: Job) -> None:
    with Raw(corner.router.url) as raw:
        raw.request("POST", corner.root + "/slow-read?ms=60000", "Content-Length: 1000000000\r\n")
        fill(raw.sock)
        assert corner.connections() == 1
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wait_until(lambda: corner.connections() == 0, 2 * SECOND)


def test_a_download_that_is_abandoned_leaves_the_job(corner: Job) -> None:
    for read in (100_000, 0):
        with Raw(corner.router.url) as raw:
            raw.request("GET", corner.root + "/flood")
            raw.read_exactly(read)
            wait_until(lambda: corner.connections() == 1)
        wait_until(lambda: corner.connections() == 0, SECOND)


def test_a_websocket_that_ends_without_a_close_frame_leaves_the_job(fast: Job) -> None:
    handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    for end in (b"", RESET):
        with Raw(fast.router.url) as raw:
            raw.request("GET", fast.root + "/ws", handshake)
            raw.read_until(b"\r\n\r\n")
            assert fast.connections() == 1
            if end:
                raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, end)
        wait_until(lambda: fast.connections() == 0, SECOND)


def test_each_side_of_a_tunnel_ends_on_its_own(corner: Job) -> None:
    data = bytes(range(256)) * 40_000
    with Raw(corner.router.url) as raw:
        raw.request("GET", corner.root + "/upgrade", "Connection: Upgrade\r\nUpgrade: talk/1\r\n")
        raw.read_until(b"\r\n\r\nfirst")
        sender = threading.Thread(target=raw.send, args=(data,))
        sender.start()
        half = raw.read_exactly(len(data) // 2)
        sender.join()
        raw.sock.shutdown(socket.SHUT_WR)
        assert half + raw.read_to_end() == data
        assert not raw.cut
    wait_until(lambda: corner.connections() == 0, SECOND)


def fill(sock: socket.socket) -> int:
    """Send until the kernel accepts no more; return the number of bytes."""
    sock.settimeout(0.3)
    sent = 0
    try:
        while True:
            sent += sock.send(b"0123456789" * 10_000)
    except TimeoutError:
        sock.settimeout(10)
        return sent


def test_a_half_closed_tunnel_whose_job_is_slow_loses_nothing(
    place: tuple[Router, Agent, Path], corner: Job, jobs: Path
) -> None:
    other = Job(place[0], place[1], jobs / "corner_server.py")
    with Raw(corner.router.url) as raw:
        raw.request("GET", corner.root + "/upgrade", "Connection: Upgrade\r\nUpgrade: talk/1\r\n")
        raw.read_until(b"\r\n\r\nfirst")
        sent = fill(raw.sock)
        received = len(raw.read_exactly(4_000_000))  # What our own kernel still held of the rest can leave it.
        raw.sock.shutdown(socket.SHUT_WR)
        abandon(other)  # The worker has looked for clients that vanished.
        received += len(raw.read_to_end())
        assert received == sent
        assert not raw.cut


def abandon(job: Job) -> None:
    """Disconnect from a stuck upload, and wait until the router has noticed."""
    with Raw(job.router.url) as raw:
        raw.request("POST", job.root + "/slow-read?ms=60000", "Content-Length: 100000000\r\n", b"x" * 3_000_000)
        wait_until(lambda: job.connections() == 1)
    wait_until(lambda: job.connections() == 0)


@pytest.mark.parametrize("used", [False, True])
def test_a_job_that_dies_before_its_answer_is_a_502_that_says_how(corner: Job, used: bool) -> None:
    if used:
        corner.seen()  # leaves a connection that is used again
    with Raw(corner.router.url) as raw:
        raw.request("GET", corner.root + "/silent")
        wait_until(lambda: corner.connections() == 1)
        if used:
            wait_until(lambda: corner.requests("/silent") == 1)
        began = time.monotonic()
        corner.kill()
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
        assert b"killed by SIGKILL" in raw.read_until(b"SIGKILL")
        assert time.monotonic() - began < SECOND


def test_a_job_that_dies_in_the_middle_is_seen_to(place: tuple[Router, Agent, Path], jobs: Path) -> None:
    for target, headers in (
        ("/flood", ""),
        ("/drip?count=1000&ms=50", ""),
        ("/upgrade", "Connection: Upgrade\r\nUpgrade: talk/1\r\n"),
    ):
        job = Job(place[0], place[1], jobs / "corner_server.py")
        with Raw(job.router.url) as raw:
            raw.request("GET", job.root + target, headers)
            raw.read_until(b"\r\n\r\n")
            began = time.monotonic()
            job.kill()
            rest = raw.read_to_end()
            assert time.monotonic() - began < 2 * SECOND
            assert not rest.endswith(b"0\r\n\r\n")
            assert raw.cut or headers


ENDLESS = """
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x")
            time.sleep(0.01)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_until_close_of_a_job_that_is_killed_does_not_look_whole(
    place: tuple[Router, Agent, Path], tmp_path: Path, version: str
) -> None:
    router, agent, _ = place
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    path = router.serve(agent.uid, script)
    with Raw(router.url) as raw:
        raw.request("GET", path + "/http/", version=version)
        raw.read_until(b"x")
        router.post(path + "/signal", {"signal": "KILL"})
        assert not raw.read_to_end().endswith(b"0\r\n\r\n")
        assert raw.cut


def test_a_job_that_was_removed_is_gone_for_all(corner: Job) -> None:
    with Raw(corner.router.url) as raw:
        raw.request("GET", corner.root + "/silent")
        wait_until(lambda: corner.connections() == 1)
        began = time.monotonic()
        corner.router.post(corner.path + "/remove")
        assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 502 ")
        assert time.monotonic() - began < SECOND


def test_requests_one_after_another_share_a_connection(corner: Job) -> None:
    before = corner.seen()["accepted"]
    for _ in range(50):
        corner.router.get(corner.root + "/record/x")
        corner.router.post(corner.root + "/record/y", data=b"z")
    assert corner.seen()["accepted"] == before


def test_idle_connections_are_bounded(corner: Job) -> None:
    with ThreadPoolExecutor(180) as pool:
        list(pool.map(lambda _: corner.router.get(corner.root + "/drip?count=2&ms=700"), range(180)))
    assert corner.seen()["accepted"] > 130
    wait_until(lambda: corner.connections() <= 128)


def test_a_request_that_may_be_repeated_is_repeated_once(corner: Job) -> None:
    corner.router.get(corner.root + "/record/warm")
    answer = exchange(corner.router.url, "GET", corner.root + "/close")[0]
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert corner.requests("/close") == 2
    assert exchange(corner.router.url, "GET", corner.root + "/close")[0].startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        ("POST", "Content-Length: 2\r\n", b"ab"),
        ("POST", "Content-Length: 0\r\n", b""),
        ("PUT", "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        ("DELETE", "", b""),
        ("PATCH", "Content-Length: 1\r\n", b"x"),
        ("GET", "Content-Length: 1\r\n", b"x"),
    ],
)
def test_a_request_that_may_not_be_repeated_is_not(corner: Job, method: str, headers: str, body: bytes) -> None:
    corner.router.get(corner.root + "/record/warm")
    assert exchange(corner.router.url, method, corner.root + "/close", headers, body)[0].startswith(b"HTTP/1.1 502 ")
    assert corner.requests("/close") == 1


def test_a_request_whose_answer_began_is_not_repeated(corner: Job) -> None:
    hints = "SFRUUC8xLjEgMTAzIEVhcmx5IEhpbnRzDQoNCg=="
    corner.router.get(corner.root + "/record/warm")
    answer, cut = exchange(corner.router.url, "GET", f"{corner.root}/raw?b64={hints}")
    assert not cut
    assert [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")] == [
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 502 Bad Gateway",
    ]
    assert corner.requests("/raw") == 1
