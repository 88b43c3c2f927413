"""Clients that stop sending or reading: others are served meanwhile, and memory stays bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from prouter.web.proxy.eviction import PAUSE
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

PLACES = 50
SERVER = Path(__file__).parents[1] / "jobs" / "fast_server.py"
MIB = 1 << 20


@pytest.fixture(scope="module")
def crowded(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    """A router with one worker, few connections and short timeouts."""
    with ExitStack() as stack:
        router = start_router(
            short_dir / "crowded", workers=1, control__max_connections=PLACES, control__body_memory=8 * MIB
        )
        stack.callback(router.stop)
        agent = start_agent(short_dir / "crowded-agent", router)
        stack.callback(agent.stop)
        yield router, agent


def connect(router: Router) -> socket.socket:
    url = urlsplit(router.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect((url.hostname or "", url.port or 0))
    return client


class Crowd:
    """More clients than the worker accepts; each has sent `request`, and sends a byte of `trickle` now and then."""

    def __init__(self, router: Router, request: bytes, trickle: bytes = b"") -> None:
        self._done = threading.Event()
        self._clients = [connect(router) for _ in range(PLACES + 10)]
        for client in self._clients:
            with suppress(OSError):
                client.sendall(request)
        self._thread = threading.Thread(target=self._trickle, args=(trickle,))
        self._thread.start()

    def _trickle(self, trickle: bytes) -> None:
        while trickle and not self._done.wait(0.1):
            for client in self._clients:
                with suppress(OSError):
                    client.sendall(trickle)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for client in self._clients:
            client.close()


def serves(router: Router, times: int = 20, within: float = 5) -> None:
    """Check that other clients are served within so many seconds, repeatedly."""

    def answered() -> bool:
        with suppress(OSError):
            return router.get("/info", timeout=5).status_code == 200
        return False

    wait_until(answered, within, "others are served")
    wait_until(lambda: all(answered() for _ in range(times)), 10, "others are served again and again")


HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"POST /jobs/create" + HEAD


@pytest.mark.parametrize("trickle", [b"", b" "], ids=["silent", "trickling"])
@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(lambda _: JSON + b"Content-Length: 100000\r\n\r\n{", id="json"),
        pytest.param(lambda _: JSON + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n{", id="chunked"),
        pytest.param(lambda _: b"POST /jobs/create" + HEAD + b"X: ", id="head"),
        pytest.param(lambda job: b"PUT %s/file/slow" % job + HEAD + b"Content-Length: 100000\r\n\r\nx", id="upload"),
        pytest.param(
            lambda job: b"PUT %s/file/s" % job + HEAD + b"Transfer-Encoding: chunked\r\n\r\n10000\r\nx", id="stream"
        ),
        pytest.param(lambda job: b"POST %s/archive" % job + HEAD + b"Content-Length: 100000\r\n\r\nx", id="archive"),
        pytest.param(lambda job: b"POST %s/http/sink" % job + HEAD + b"Content-Length: 100000\r\n\r\nx", id="to-a-job"),
    ],
)
def test_slow_requests_leave_others_served(
    crowded: tuple[Router, Agent], job: bytes, request_of: Callable[[bytes], bytes], trickle: bytes
) -> None:
    with Crowd(crowded[0], request_of(job), trickle):
        serves(crowded[0])


@pytest.fixture(scope="module")
def job(crowded: tuple[Router, Agent]) -> bytes:
    """A running job with a large file and a server."""
    router, agent = crowded
    path = router.serve(agent.uid, SERVER)
    body = {"data": bytes(32 * MIB), "headers": {"Content-Type": "application/octet-stream"}}
    assert router.post(path + "/file/big", **body).status_code == 200
    return path.encode()


@pytest.mark.parametrize("target", [b"/file/big", b"/archive", b"/http/bytes/40000000", b"/http/chunked/40000000"])
def test_clients_that_do_not_read_leave_others_served(crowded: tuple[Router, Agent], job: bytes, target: bytes) -> None:
    with Crowd(crowded[0], b"GET %s%s" % (job, target) + HEAD + b"\r\n"):
        serves(crowded[0], within=PAUSE + 10)


def test_requests_that_wait_for_something_else_are_left_alone(crowded: tuple[Router, Agent], job: bytes) -> None:
    router = crowded[0]
    with connect(router) as waiting, connect(router) as followed:
        waiting.sendall(b"POST %s/wait?timeout=4" % job + HEAD + b"Content-Length: 0\r\n\r\n")
        followed.sendall(b"GET /events" + HEAD + b"\r\n")
        with Crowd(router, JSON + b"Content-Length: 100\r\n\r\n{"):
            serves(router)
            assert waiting.recv(65536).startswith(b"HTTP/1.1 202 ")
            assert followed.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_large_bodies_that_wait_for_their_end_take_bounded_memory(short_dir: Path) -> None:
    router = start_router(short_dir / "memory", workers=1, control__body_memory=16 * MIB)
    try:
        worker = psutil.Process(router.child("gunicorn")).children()[0]
        serves(router)
        before = worker.memory_info().rss
        clients = [connect(router) for _ in range(150)]
        try:
            for client in clients:
                with suppress(OSError):
                    client.sendall(JSON + b"Content-Length: 1000000\r\n\r\n" + bytes(999_999))
            serves(router)
            assert router.post("/jobs/create", {"name": "x" * 100}).status_code == 400
            assert worker.memory_info().rss - before < 90 * MIB
        finally:
            for client in clients:
                client.close()
    finally:
        router.stop()


def test_bodies_and_uploads_have_their_time(short_dir: Path) -> None:
    router = start_router(short_dir / "patience", workers=1, control__body_timeout=1, control__upload_timeout=1)
    try:
        agent = start_agent(short_dir / "patience-agent", router)
        try:
            path = router.create(agent.uid).encode()
            for request in (JSON, b"PUT %s/file/f" % path + HEAD, b"POST %s/archive" % path + HEAD):
                with connect(router) as client:
                    client.sendall(request + b"Content-Length: 100000\r\n\r\n{")
                    began = time.monotonic()
                    answer = client.recv(65536)
                    assert answer.startswith(b"HTTP/1.1 408 ")
                    assert b"body_timeout" in answer
                    assert time.monotonic() - began > 0.5
            assert router.get(f"{path.decode()}/file/").json()["entries"] == []
        finally:
            agent.stop()
    finally:
        router.stop()
