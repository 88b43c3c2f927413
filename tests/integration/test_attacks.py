"""Attacks on the agents' port, HTTP, the sandbox and secrets are refused, and everybody else is served."""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from prouter.fabric.frames import HELLO, Frame, encode, pack_body
from tests.support.job_files import Sandbox
from tests.support.processes import Agent, Process, Router, processes_with, start_agent, start_router, wait_until
from tests.support.raw_http import Raw, exchange

SECRET = "s3cret-of-this-test"
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
"""ZMTP 3.0 (rfc.zeromq.org/spec/23): signature, version, mechanism, as-server, filler."""
READY = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
MIB = 1024 * 1024


def resident(pid: int) -> int:
    """Memory of a process, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def served(router: Router, agent: Agent) -> float:
    """Seconds a create and a list take while others misbehave."""
    began = time.monotonic()
    assert router.create(agent.uid)
    assert agent.uid in [one["peer"]["auth"]["uid"] for one in router.get("/connections").json()["connections"]]
    return time.monotonic() - began


def broker_is(router: Router, pid: int) -> bool:
    return router.child("broker") == pid and Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def guarded(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    """A router and an agent with a token, which came by the environment, and one job's sandbox each test."""
    with ExitStack() as stack:
        router = start_router(short_dir / "guarded", server__accept_tokens=[SECRET])
        stack.callback(router.stop)
        agent = start_agent(short_dir / "guarded-agent", router, client__token=SECRET)
        stack.callback(agent.stop)
        yield router, agent


# -- the agents' port ---------------------------------------------------------------------------------------------


def wire(*parts: bytes) -> bytes:
    """A ZeroMQ message of long frames."""
    last = len(parts) - 1
    return b"".join(struct.pack(">BQ", 2 + (number < last), len(part)) + part for number, part in enumerate(parts))


def shake_hands(client: socket.socket) -> None:
    """Be taken for a ZeroMQ peer; the other side may say READY as soon as it has said who it is."""
    seen = b""
    for words, answer in ((GREETING, b"NULL" + bytes(48)), (READY, b"READY")):
        client.sendall(words)
        while answer not in seen:
            data = client.recv(4096)
            assert data, seen
            seen += data


def test_a_flood_of_strangers_costs_no_memory(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    broker = router.child("broker")
    before = peak = resident(broker)
    wrong = pack_body({"kind": "agent", "protocol": 1, "token": "guess", "uid": agent.uid})
    messages = [(b"f" * 32, b"x" * 400), (b"", os.urandom(400)), (b"", *encode([Frame(HELLO, payload=wrong)]))]
    flood = b"".join(wire(*message) for message in messages) * 1000
    host, _, port = router.agents.rpartition(":")
    slowest, cut, end = 0.0, 0, time.monotonic() + 4
    while time.monotonic() < end:
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                shake_hands(client)
                try:
                    for _ in range(10):
                        client.sendall(flood)
                except (BrokenPipeError, ConnectionResetError):
                    cut += 1
            peak = max(peak, resident(broker))
        slowest = max(slowest, served(router, agent))
    assert cut
    assert slowest < 3
    assert peak - before < 32 * MIB
    assert broker_is(router, broker)
    assert router.log.read_text().count("event=malformed_message") < 10


def test_broken_zeromq_is_dropped(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    broker = router.child("broker")
    before = resident(broker)
    host, _, port = router.agents.rpartition(":")
    chance = random.Random(7)
    attacks = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01" + chance.randbytes(500),
        GREETING[:20],
        GREETING.replace(b"NULL", b"PLAIN"),
        GREETING + b"\x06" + struct.pack(">Q", 2**63) + b"x",
        GREETING + READY + b"\x02" + struct.pack(">Q", 2**62) + b"x",
        GREETING + READY + b"\x02" + struct.pack(">Q", 17 * MIB) + b"x" * MIB,
        *(GREETING + chance.randbytes(chance.randrange(2000)) for _ in range(100)),
        *(GREETING + READY + chance.randbytes(chance.randrange(2000)) for _ in range(100)),
    ]
    with ExitStack() as stack:
        for attack in attacks:
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            try:
                client.sendall(attack)
            except (BrokenPipeError, ConnectionResetError):
                continue
        assert served(router, agent) < 3
    assert served(router, agent) < 3
    assert resident(broker) - before < 48 * MIB
    assert broker_is(router, broker)


# -- HTTP ---------------------------------------------------------------------------------------------------------


def test_thousands_of_idle_and_slow_connections_leave_the_others_served(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3000, (hard if hard > 0 else 10**6) - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    starts = [
        b"",
        b"GET /info HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\n",
    ]
    starts.append(starts[2] + b"Content-Length: 1000\r\n\r\n{")
    starts.append(starts[2] + b"Transfer-Encoding: chunked\r\n\r\n1;")
    try:
        with ExitStack() as stack:
            for number in range(count):
                raw = stack.enter_context(Raw(router.url))
                raw.send(starts[number % len(starts)])
            assert max(served(router, agent) for _ in range(5)) < 3
        assert served(router, agent) < 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_usual_limit_of_descriptors_does_not_bound_clients(launch: Callable[..., Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        router = launch(start_router, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(Raw(router.url))
        assert router.get("/healthz", timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("head", "endless", "statuses"),
    [
        (b"GET /info HTTP/1.1\r\nHost: localhost\r\n", b"X-Y: z\r\n" * 1000, {b"431"}),
        (b"GET /", b"a" * 8000, {b"431", b"414", b"400"}),
        (
            b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
            b"x" * 8000,
            {b"413"},
        ),
        (
            b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1000\r\n" + b"x" * 4096 + b"\r\n",
            {b"413", b"400"},
        ),
        (
            b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;",
            b"x" * 8000,
            {b"400"},
        ),
        (
            b"POST /jobs/create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"A: b\r\n" * 1000,
            {b"400"},
        ),
    ],
)
def test_what_never_ends_is_refused(
    guarded: tuple[Router, Agent], head: bytes, endless: bytes, statuses: set[bytes]
) -> None:
    with Raw(guarded[0].url) as raw:
        raw.send(head)
        try:
            for _ in range(2000):
                raw.send(endless)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = raw.read_to_end()
    # A client that never stops sending may lose the answer to its own noise, but not go on.
    assert raw.cut or answer.split(b" ", 2)[1] in statuses


def test_other_sites_pages_can_change_nothing(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    body = json.dumps({"name": "x", "agent": {"type": "uid", "uid": agent.uid}, "args": ["true"], "env": {}})
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for path in ("/jobs/run", "/jobs/create", "/shutdown", f"{router.create(agent.uid)}/remove"):
            answer = router.post(path, data=body, headers={"Content-Type": "text/plain", **headers})
            assert answer.status_code == 403, answer.text
            assert answer.headers["X-PRouter-Error"] == "cross_site"


BAD_ANSWERS = {
    b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\n folded: x\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2_000_000: b"502",
    b"HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n": b"502",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison": b"200",
}
BAD_SERVER = """
import os, socket
answers = eval(open("answers").read())
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    client, _ = server.accept()
    head = client.recv(65536)
    if head:
        try:
            client.sendall(answers[int(head.split()[1].strip(b"/"))])
        except OSError:
            pass
    client.close()
"""


def test_a_jobs_answer_can_smuggle_nothing(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    path = router.create(agent.uid)
    router.post(f"{path}/file/answers", data=repr(list(BAD_ANSWERS)))
    router.start(path, [sys.executable, "-c", BAD_SERVER], expose={"port": "assign"})
    for number, (answer, status) in enumerate(BAD_ANSWERS.items()):
        got, _ = exchange(router.url, "GET", f"{path}/http/{number}")
        assert got.split(b" ", 2)[1] == status, (answer[:80], got[:300])
        assert got.count(b"HTTP/1.1 ") == 1
        assert b"Set-Cookie" not in got.partition(b"\r\n\r\n")[0]
        assert b"poison" not in got
    assert router.post(f"{path}/remove").status_code == 200


# -- the sandbox --------------------------------------------------------------------------------------------------

ESCAPES = [
    "../../{name}", "..%2f..%2f{name}", "%2e%2e/%2e%2e/{name}", "%2e%2e%2f%2e%2e%2f{name}", "a/../../../{name}",
    "/{full}", "%2f{full}", "//{full}", "link/{name}", "link%2f{name}", "file-link", "..%5c..%5c{name}",
    "%2e%2e%00/{name}", "./link/./{name}",
]  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_path_leads_out_of_the_sandbox(guarded: tuple[Router, Agent], tmp_path: Path, escape: str) -> None:
    sandbox = Sandbox(*guarded)
    outside = tmp_path / "outside"
    outside.write_text("hands off")
    (sandbox.root / "link").symlink_to(tmp_path)
    (sandbox.root / "file-link").symlink_to(outside)
    two_up = sandbox.root.parent.parent / "outside"
    two_up.write_text("hands off")
    target = escape.format(name="outside", full=str(outside).lstrip("/"))
    for method in ("GET", "POST", "DELETE"):
        length = "Content-Length: 4\r\n" if method == "POST" else ""
        head = f"{method} {sandbox.path}/file/{target} HTTP/1.1\r\n{length}".rstrip()
        _, content = sandbox.raw(head, b"evil" if length else b"")
        assert b"hands off" not in content
    assert outside.read_text() == two_up.read_text() == "hands off"


# -- secrets ------------------------------------------------------------------------------------------------------


def test_a_token_shows_nowhere(guarded: tuple[Router, Agent], launch: Callable[..., Any]) -> None:
    router, agent = guarded
    for path in ("/info", "/connections", "/metrics", "/openapi.json", "/", "/jobs"):
        assert SECRET not in router.get(path).text
    assert SECRET not in router.log.read_text() + agent.log.read_text()
    typed = {router.pid, agent.pid}
    for pid in processes_with(str(router.directory.parent)):
        if pid not in typed:
            with suppress(OSError):  # it ended meanwhile
                assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_job_does_not_learn_its_agents_secrets(guarded: tuple[Router, Agent], tmp_path: Path) -> None:
    router, _ = guarded
    # Configured as a service would be, through the environment.
    environment = {"PROUTER_CLIENT__TOKEN": SECRET, "PROUTER_CLIENT__ADDRESS": router.agents}
    argv = [sys.executable, "-m", "prouter", "agent", "--set", f"state.dir={str(tmp_path / 's')!r}"]
    process = Process(argv, tmp_path / "log", environment)
    try:
        uid = process.wait_line(r"^ready agent=(\S+)")[1]
        path = router.create(uid)
        router.start(path, [sys.executable, "-c", "import os; print(dict(os.environ))"], port_expected_count=0)
        router.post(path + "/wait")
        seen = router.get(path + "/file/.pagent.stdout").text
        assert "PROUTER_JOB_ID" in seen
        assert SECRET not in seen
    finally:
        process.stop()


def test_what_is_kept_is_private(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    for private in (router.directory / "state", router.directory / "run", agent.directory / "state"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((agent.directory / "jobs").stat().st_mode) == 0o700
    for directory in (router.directory / "state", router.directory / "run"):
        for path in directory.iterdir():
            if SECRET.encode() in (path.read_bytes() if path.is_file() else b""):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "settings",
    [
        ("up", "control.interface='0.0.0.0'"),
        ("up", "control.interface='0.0.0.0'", "control.tokens=['x']"),
        ("up", "server.interface='0.0.0.0'", "server.insecure=True"),
        ("broker", "server.interface='::'", "server.insecure=True"),
        ("agent", "server.enabled=True", "server.interface='0.0.0.0'"),
        ("agent", "control.enabled=True", "control.interface='0.0.0.0'"),
    ],
)
def test_nothing_serves_other_machines_unprotected(settings: tuple[str, ...], tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "prouter", settings[0]]
    for setting in (*settings[1:], f"state.dir={str(tmp_path)!r}"):
        argv += ["--set", setting]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert (
        "can be reached from other machines" in done.stderr
        or "control.tokens: entry 1 is not NAME:ROLE:sha256:HASH" in done.stderr
    )


def test_the_routers_ipc_takes_nonsense(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    broker = router.child("broker")
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"ipc://{router.directory}/run/broker.ipc")
    try:
        for parts in ([b""], [b"x"], [b"", b""], [b"", os.urandom(5000)], [b"r" * 300, b"x"], [b"", b"\1" * 32]):
            for _ in range(200):
                dealer.send_multipart(parts)
        wait_until(lambda: served(router, agent) < 3)
    finally:
        dealer.close()
        context.term()
    assert broker_is(router, broker)
