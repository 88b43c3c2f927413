"""Bounds of agents' links: what waits for a peer that does not read, and unauthenticated peers. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from prouter.transport.zmtp.codec import encode_message
from prouter.transport.zmtp.handshakes import opening
from tests.integration.test_attacks import resident
from tests.support.processes import Agent, Router, link_settings, start_agent, start_router, wait_until

MIB = 1024 * 1024
JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture(params=["tcp", "ipc"])
def pair(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        directory = short_dir / f"bounds-{request.param}"
        router = start_router(directory / "router", workers=1, server__curve=request.param == "curve")
        stack.callback(router.stop)
        agent = start_agent(directory / "agent", router, **link_settings(router, request.param))
        stack.callback(agent.stop)
        yield router, agent


def upload(router: Router, path: str, stop: threading.Event) -> None:
    """Send a request body without end, until nothing is taken any more or the test is over."""
    host, _, port = router.url.removeprefix("http://").rpartition(":")
    with closing(socket.create_connection((host, int(port)), 5)) as client, suppress(OSError):
        client.settimeout(0.2)
        head = f"PUT {path}/http/slow-read?ms=1000 HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {1 << 40}\r\n\r\n"
        client.sendall(head.encode())
        data = memoryview(bytes(MIB))
        while not stop.is_set():
            with suppress(TimeoutError):
                client.send(data)


def test_an_agent_that_stands_still_costs_the_broker_little_memory_however_much_is_uploaded(
    pair: tuple[Router, Agent],
) -> None:
    router, agent = pair
    path = router.create(agent.uid)
    served = {"port": "assign", "path": "strip", "ready": "tcp"}
    router.start(path, [sys.executable, str(JOBS / "corner_server.py"), "{port}"], expose=served)
    wait_until(lambda: router.get(path + "/http/").status_code < 500, 20, "the job serves")
    broker = router.child("broker")
    before, peak = resident(broker), 0
    stop = threading.Event()
    clients = [threading.Thread(target=upload, args=(router, path, stop), daemon=True) for _ in range(32)]
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        for client in clients:
            client.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            peak = max(peak, resident(broker))
            time.sleep(0.05)
    finally:
        stop.set()
        os.kill(agent.pid, signal.SIGCONT)
    for client in clients:
        client.join(10)
    assert peak - before < 160 * MIB
    assert router.child("broker") == broker
    wait_until(lambda: router.get(path + "/http/").status_code < 500, 30, "the job is reached again")


def test_unauthenticated_peers_of_the_unix_socket_have_the_limits_of_those_on_tcp(short_dir: Path) -> None:
    with ExitStack() as stack:
        router = start_router(short_dir / "limits", workers=1, server__accept_tokens=["secret"])
        stack.callback(router.stop)
        place = router.directory / "run" / "agents.sock"
        assert place.stat().st_mode & 0o777 == 0o600
        for first in (b"GET / HTTP/1.1\r\n\r\n", b"".join((opening(b"DEALER"), *encode_message([b"", bytes(MIB)])))):
            client = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            client.connect(str(place))
            client.settimeout(20)
            with suppress(OSError):
                client.sendall(first)
                while client.recv(4096):
                    pass
        silent = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        silent.connect(str(place))
        silent.settimeout(40)
        began = time.monotonic()
        while silent.recv(4096):
            pass
        assert time.monotonic() - began > 5
        agent = start_agent(short_dir / "limits-agent", router, client__token="secret", **link_settings(router, "ipc"))
        stack.callback(agent.stop)
        assert router.create(agent.uid)
