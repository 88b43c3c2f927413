"""What the router connects to for its users: bridges and agents' addresses."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Agent, Router, start_agent, start_joined, start_router, wait_until


@pytest.fixture(scope="module")
def job(router: Router, agent: Agent, jobs: Path) -> str:
    return router.serve(agent.uid, jobs / "websocket_server.py")


def port_of(router: Router, *, agents: bool) -> int:
    return int((router.agents if agents else router.url).rpartition(":")[2])


def refused(router: Router, job: str, host: str, port: int) -> str:
    """Ask for a bridge that is refused; return the reason."""
    answer = router.post(f"{job}/wsconnect/silent", {"url": f"ws://{host}:{port}/"})
    assert (answer.status_code, answer.json().get("code")) == (403, "target_forbidden"), (host, answer.text)
    assert answer.headers["X-PRouter-Error"] == "target_forbidden"
    detail: str = answer.json()["detail"]
    assert "control.allow_targets" in detail
    return detail


def end_of(router: Router, job: str, path: str) -> str:
    """The reason with which the bridge at `path` closed the job's WebSocket."""
    ended: dict[str, Any] = wait_until(
        lambda: next((end for end in router.get(job + "/http/seen").json()["ended"] if end["path"] == path), {}),
        what=f"the end of {path}",
    )
    return str(ended["reason"])


@contextmanager
def server(response: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A TCP server on loopback: its port, and the heads that arrived. It sends `response` and closes."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    heads.append(connection.recv(4096))
                    connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heads
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("agents", [False, True], ids=["control", "agents"])
def test_bridges_to_the_routers_own_ports_are_refused(router: Router, job: str, agents: bool) -> None:
    port = port_of(router, agents=agents)
    spellings = [
        "127.0.0.1", "localhost", "LOCALHOST", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.1",
        "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "[::]", "user:password@127.0.0.1",
    ]  # fmt: skip
    for host in spellings:
        assert "password" not in refused(router, job, host, port)
    assert "a port of the router itself" in refused(router, job, "127.0.0.1", port)
    assert router.get(f"{job}/wsconnect").json() == {"bridges": []}
    assert router.get(f"{job}/http/seen").json()["open"] == 0, "the job is not told"


def test_bridges_to_special_addresses_are_refused(router: Router, job: str) -> None:
    for host in (
        "169.254.169.254", "[fe80::1]", "[fe80::1%lo]", "[fd00:ec2::254]", "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]", "224.0.0.1", "255.255.255.255", "2852039166",
    ):  # fmt: skip
        assert refused(router, job, host, 80)


def test_agents_at_the_routers_own_ports_and_special_addresses_are_refused(router: Router, agent: Agent) -> None:
    places = [("127.0.0.1", port_of(router, agents=True)), ("127.1", port_of(router, agents=False))]
    for host, port in [*places, ("localhost", places[0][1]), ("[::1]", places[0][1])]:
        selector = {"type": "address", "address": f"{host}:{port}", "token": "t"}
        answer = router.post("/jobs/create", {"name": "x", "agent": selector})
        assert answer.status_code == 403, answer.text
        if answer.json()["code"] != "agent_key_unknown":  # short forms are not known to be this machine
            assert answer.json()["code"] == "target_forbidden"
            assert "control.allow_targets" in answer.json()["detail"]


def test_a_redirect_is_not_followed(router: Router, job: str) -> None:
    with server() as (port, heads):
        location = f"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n".encode()
        with server(location) as (redirecting, asked):
            path = f"/silent?{uuid.uuid4()}"
            assert router.post(f"{job}/wsconnect{path}", {"url": f"ws://127.0.0.1:{redirecting}/"}).status_code == 200
            assert "redirect" in end_of(router, job, path)
    assert len(asked) == 1
    assert heads == []


def test_with_a_list_only_what_it_names_is_connected_to(
    launch: Callable[..., Any], jobs: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = start_joined(work_dir / "agent", client__enabled=False, server__enabled=True, server__port=0)
    try:
        at = int(re.findall(r"listen=tcp://\S+:(\d+)", listening.ready)[0])
        with server() as (named, heads), server() as (other, _), server() as (proxy, proxied):
            audit = work_dir / "audit"
            allowed = [f"127.0.0.1:{named}", f"*.example.org:{other}", f"127.0.0.1:{at}"]
            with monkeypatch.context() as environment:
                for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "socks_proxy"):
                    environment.setenv(name, f"http://127.0.0.1:{proxy}")
                router = launch(start_router, workers=1, control__allow_targets=allowed, audit__file=str(audit))
            job = router.serve(launch(start_agent, router).uid, jobs / "websocket_server.py")
            path = f"/silent?{uuid.uuid4()}"
            assert router.post(f"{job}/wsconnect{path}", {"url": f"ws://127.0.0.1:{named}/here"}).status_code == 200
            assert end_of(router, job, path)
            assert [head.split()[1] for head in heads] == [b"/here"]
            assert proxied == []
            assert "not listed" in refused(router, job, "127.0.0.1", other)
            refused(router, job, "localhost", other)
            refused(router, job, "127.0.0.2", named)
            refused(router, job, "127.0.0.1", port_of(router, agents=False))
            lines = [json.loads(line) for line in audit.read_text().splitlines()]
            assert [line["status"] for line in lines if line["operation"] == "bridge"] == [200] + 4 * [403]

            def ask(port: int) -> Any:
                selector = {"type": "address", "address": f"127.0.0.1:{port}", "token": ""}
                return router.post("/jobs/create", {"name": "x", "agent": selector})

            assert ask(at).status_code == 200
            assert ask(other).json()["code"] == "target_forbidden"
            assert "event=target_forbidden" in router.log.read_text()
    finally:
        listening.stop()


def test_a_target_that_is_no_target_stops_the_start() -> None:
    argv = [sys.executable, "-m", "prouter", "config", "--set", "control.allow_targets=['10.0.0.1/8']"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "control.allow_targets" in done.stderr
    assert "without host bits" in done.stderr
