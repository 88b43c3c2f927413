"""Which requests the shipped nginx configuration sends to another router when one dies, and which it sends once."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.client import Connection
from tests.bench.nginx import Nginx, several_routers
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.programs import needed

pytestmark = needed("nginx")

JOBS = Path(__file__).parents[1] / "jobs"
JOB = "/jobs/" + "c" * 32 + "/" + "b" * 32
QUEUED = "/jobs/queue-" + "c" * 26 + "/" + "b" * 32
KEY = {"Idempotency-Key": "a-key"}
SMALL = b"{}"
LARGE = b"x" * 1_000_000


class _Dying(socketserver.BaseRequestHandler):
    """A router that dies whenever it has read the head of a request."""

    def handle(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in data and (more := self.request.recv(65536)):
                data += more
            self.request.shutdown(socket.SHUT_RDWR)


class _Elsewhere(socketserver.StreamRequestHandler):
    """A router that has no link to the agent of any job."""

    def handle(self) -> None:
        size = 0
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        with contextlib.suppress(OSError):
            self.wfile.write(
                b"HTTP/1.1 503 Service Unavailable\r\nX-PRouter-Error: agent_elsewhere\r\nRetry-After: 1\r\n"
            )
            self.wfile.write(b"Content-Length: 4\r\nConnection: close\r\n\r\nelse")
            self.rfile.read(size)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def _fan_out(main: Path) -> None:
    """Change what the configuration says for agents that link to some routers (``client.fanout``)."""
    upstream = main.parent / "conf.d" / "several-routers.conf"
    assert upstream.read_text().count("max_fails=2") == 3
    upstream.write_text(upstream.read_text().replace("max_fails=2", "max_fails=0"))
    snippet = main.parent / "snippets" / "prouter-several.conf"
    text, count = re.subn(
        r'proxy_next_upstream [a-z_ ]+;( +# CHANGE: with client.fanout )"([a-z0-9_ ]+)"',
        r"proxy_next_upstream \2;\1",
        snippet.read_text(),
    )
    assert count == 2
    snippet.write_text(text)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx in front of two routers that do not know the job, and a server that answers everything."""
    with _two_elsewhere(tmp_path_factory.mktemp("elsewhere"), fanout=False) as port:
        yield port


@pytest.fixture(scope="module")
def fanned_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The same, configured for agents that link to some routers."""
    with _two_elsewhere(tmp_path_factory.mktemp("fanout"), fanout=True) as port:
        yield port


@contextlib.contextmanager
def _two_elsewhere(directory: Path, *, fanout: bool) -> Iterator[int]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(_Server(("127.0.0.1", 0), _Elsewhere)) for _ in range(2)]
        for other in others:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            stack.callback(other.shutdown)
        job = Process([sys.executable, str(JOBS / "fast_server.py"), "0"], directory / "job.log")
        stack.callback(job.stop)
        linked = job.wait_line(r"^listening (\S+)$")[1]
        addresses = [f"127.0.0.1:{other.server_address[1]}" for other in others]

        def adapt(main: Path) -> None:
            several_routers([addresses[0], linked, addresses[1]])(main)
            if fanout:
                _fan_out(main)

        nginx = Nginx(directory / "nginx", linked, port, adapt=adapt)
        stack.callback(nginx.close)
        yield port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx in front of a router that always dies, a server that answers everything, and one that is not there."""
    directory = tmp_path_factory.mktemp("several")
    port = free_port()

    def no_rest(main: Path) -> None:
        several_routers([f"127.0.0.1:{dying.server_address[1]}", alive, f"127.0.0.1:{free_port()}"])(main)
        upstream = main.parent / "conf.d" / "several-routers.conf"
        assert upstream.read_text().count("max_fails=2") == 3
        upstream.write_text(upstream.read_text().replace("max_fails=2", "max_fails=0"))

    with contextlib.ExitStack() as stack:
        dying = stack.enter_context(_Server(("127.0.0.1", 0), _Dying))
        threading.Thread(target=dying.serve_forever, daemon=True).start()
        stack.callback(dying.shutdown)
        job = Process([sys.executable, str(JOBS / "fast_server.py"), "0"], directory / "job.log")
        stack.callback(job.stop)
        alive = job.wait_line(r"^listening (\S+)$")[1]
        nginx = Nginx(directory / "nginx", alive, port, adapt=no_rest)
        stack.callback(nginx.close)
        yield port


def statuses(port: int, method: str, target: str, headers: dict[str, str], body: bytes) -> list[int]:
    """The statuses of six such requests. Each router is the first choice for two of them."""
    found = []
    for _ in range(6):
        with contextlib.closing(Connection(("127.0.0.1", port))) as http:
            found.append(http.request(method, target, body, headers=headers).status)
    return found


REPEATED = pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        ("GET", "/echo", {}, b""),
        ("HEAD", "/echo", {}, b""),
        ("OPTIONS", "/echo", {}, b""),
        ("DELETE", f"{JOB}/file/x", {}, b""),
        ("PUT", f"{JOB}/file/x", {}, LARGE[:999_999]),
        ("PUT", f"{JOB}/http/echo", {}, SMALL),
        ("POST", "/jobs/create", KEY, SMALL),
        ("POST", "/jobs/run", KEY, SMALL),
        ("POST", "/jobs/run?wait=5", KEY, SMALL),
        ("POST", f"{JOB}/start", KEY, SMALL),
        ("POST", f"{JOB}/wait", {}, b""),
        ("POST", f"{JOB}/wait?timeout=1", {}, SMALL),
        ("POST", f"{JOB}/info", {}, b""),
    ],
)
SENT_ONCE = pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        ("POST", "/jobs/create", {}, SMALL),
        ("POST", f"{JOB}/start", {}, SMALL),
        ("POST", f"{JOB}/remove", KEY, b""),
        ("POST", f"{JOB}/http/echo", KEY, SMALL),
        ("POST", f"{JOB}/http/jobs/create", KEY, SMALL),
        ("POST", f"{JOB}/shared/secret/start", KEY, SMALL),
        ("PATCH", f"{JOB}/http/echo", {}, SMALL),
        ("PUT", f"{JOB}/file/x", {}, LARGE),
    ],
)


@REPEATED
def test_what_may_be_repeated_gets_its_response_from_the_router_that_lives(
    port: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    assert 502 not in statuses(port, method, target, headers, body)


@SENT_ONCE
def test_what_may_not_be_repeated_is_sent_once(
    port: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    found = statuses(port, method, target, headers, body)
    assert 502 in found, "the router that died had it"
    assert any(status != 502 for status in found)


@REPEATED
def test_with_some_links_what_may_be_repeated_reaches_the_router_that_is_linked(
    fanned_out: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    assert 503 not in statuses(fanned_out, method, target, headers, body)


@SENT_ONCE
def test_with_some_links_what_may_not_be_repeated_gets_the_answer_of_the_first_router(
    fanned_out: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    found = statuses(fanned_out, method, target, headers, body)
    assert found.count(503) == 4


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        ("GET", f"{QUEUED}/info", {}, b""),
        ("GET", f"{QUEUED}/explain?x=%2F", {}, b""),
        ("HEAD", f"{QUEUED}/http/", {}, b""),
        ("PUT", f"{QUEUED}/file/x", {}, SMALL),
        ("DELETE", f"{QUEUED}/file/x", {}, b""),
        ("POST", f"{QUEUED}/wait?timeout=1", {}, SMALL),
        ("POST", f"{QUEUED}/info", {}, b""),
        ("POST", f"{QUEUED}/start", KEY, SMALL),
    ],
)
def test_of_a_queued_job_what_may_be_repeated_reaches_the_router_that_has_it(
    elsewhere: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    assert 503 not in statuses(elsewhere, method, target, headers, body)


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        ("POST", f"{QUEUED}/start", {}, SMALL),
        ("POST", f"{QUEUED}/http/echo", KEY, SMALL),
        ("PUT", f"{QUEUED}/file/x", {}, LARGE),
        ("GET", f"{JOB}/info", {}, b""),
        ("GET", f"{JOB}/http/jobs/queue-1/info", {}, b""),
    ],
)
def test_a_503_of_other_requests_is_an_answer(
    elsewhere: int, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    assert statuses(elsewhere, method, target, headers, body).count(503) == 4


def test_the_503_of_routers_that_do_not_have_a_queued_job_do_not_count_against_them(elsewhere: int) -> None:
    for _ in range(5):
        statuses(elsewhere, "GET", f"{QUEUED}/info", {}, b"")
    assert statuses(elsewhere, "GET", f"{JOB}/info", {}, b"").count(503) == 4


def test_a_request_that_may_be_repeated_arrives_as_it_was_sent(port: int) -> None:
    target = "/echo?a=%2F&a=b%20c&p=//x"
    for _ in range(6):
        with contextlib.closing(Connection(("127.0.0.1", port))) as http:
            seen = http.request("PUT", target, b"a body", headers={"X_Odd": "1"}).json()
        assert seen["line"] == f"PUT {target} HTTP/1.1"
        assert seen["body"] == "a body"
        assert ["X_Odd", "1"] in seen["headers"]


def test_an_upgrade_reaches_the_router_that_lives(port: int) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x" * 24,
        "Sec-WebSocket-Version": "13",
    }
    for _ in range(6):
        with contextlib.closing(Connection(("127.0.0.1", port))) as http:
            http.send_head("GET", "/ws", upgrade)
            assert http.read_head()[0] == 101
