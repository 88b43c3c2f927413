"""Links with CURVE: what an observer sees, and what those without the right key get and cost. Real processes."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.integration.test_attacks import resident
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.tcp_tap import TcpTap

TOKEN = "token-that-nobody-may-see"
PAYLOAD = "payload-that-nobody-may-see"
MIB = 1024 * 1024
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


def router_key(router: Router) -> str:
    return str(router.directory / "state" / "keys" / "router.key")


def through_a_tap(directory: Path, *, encrypted: bool) -> bytes:
    """What passes between a router and an agent while a job runs."""
    with ExitStack() as stack:
        router = start_router(directory / "router", server__accept_tokens=[TOKEN], server__curve=encrypted)
        stack.callback(router.stop)
        tap = stack.enter_context(closing(TcpTap(router.agents)))
        key = {"client__router_key": router_key(router)} if encrypted else {}
        agent = start_agent(directory / "agent", router, client__token=TOKEN, client__address=tap.address, **key)
        stack.callback(agent.stop)
        path = router.create(agent.uid)
        router.start(path, ["echo", PAYLOAD], port_expected_count=0)
        router.post(path + "/wait")
        assert router.get(path + "/logs/stdout").text == f"{PAYLOAD}\n"
        return tap.recorded


def test_an_observer_sees_neither_token_nor_payload(short_dir: Path) -> None:
    plain = through_a_tap(short_dir / "plain", encrypted=False)
    assert TOKEN.encode() in plain
    assert PAYLOAD.encode() in plain
    seen = through_a_tap(short_dir / "curve", encrypted=True)
    assert b"CURVE" in seen
    assert len(seen) > 2000
    for secret in (TOKEN, PAYLOAD, "stdout", "incarnation"):
        assert secret.encode() not in seen


@pytest.fixture(scope="module")
def guarded(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        router = start_router(short_dir / "encrypted", server__accept_tokens=[TOKEN], server__curve=True)
        stack.callback(router.stop)
        agent = start_agent(
            short_dir / "encrypted-agent", router, client__token=TOKEN, client__router_key=router_key(router)
        )
        stack.callback(agent.stop)
        yield router, agent


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(router: Router) -> socket.socket:
    host, _, port = router.agents.rpartition(":")
    return socket.create_connection((host, int(port)), 5)


def wrong_handshake(router: Router) -> bytes:
    """Everything that a client gets which does not know the key."""
    with connect(router) as client:
        client.settimeout(10)
        hello = b"\x05HELLO\x01\x00" + bytes(72) + os.urandom(32) + struct.pack(">Q", 1) + os.urandom(80)
        got = b""
        with suppress(OSError):
            client.sendall(GREETING)
            while len(got) < len(GREETING):
                got += client.recv(4096)
            client.sendall(bytes((4, len(hello))) + hello)
            while data := client.recv(4096):
                got += data
        return got


def served(router: Router, agent: Agent) -> float:
    """Seconds that a create takes."""
    began = time.monotonic()
    assert router.create(agent.uid)
    return time.monotonic() - began


def test_clients_without_the_key_get_nothing_and_cost_next_to_nothing(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    broker = router.child("broker")
    assert len(wrong_handshake(router)) <= len(GREETING)
    before, cpu = resident(broker), cpu_seconds(broker)
    slowest = 0.0
    for number in range(2000):
        assert len(wrong_handshake(router)) <= len(GREETING)
        if number % 200 == 0:
            slowest = max(slowest, served(router, agent))
    spent = (cpu_seconds(broker) - cpu) / 2000
    assert spent < 0.002, "seconds for an attempt"
    assert resident(broker) - before < 32 * MIB
    assert slowest < 3


def test_garbage_and_half_open_connections_leave_others_served(guarded: tuple[Router, Agent]) -> None:
    router, agent = guarded
    broker = router.child("broker")
    before = resident(broker)
    with ExitStack() as stack:
        for number in range(1000):
            client = stack.enter_context(connect(router))
            with suppress(OSError):
                client.sendall((b"", GREETING[:11], GREETING, os.urandom(500))[number % 4])
        assert served(router, agent) < 3
        assert resident(broker) - before < 64 * MIB
        wait_until(lambda: not _unauthenticated(router), 40, "they are closed")
    assert served(router, agent) < 3
    assert router.child("broker") == broker
    connections = router.get("/connections").json()["connections"]
    assert [one["encrypted"] for one in connections] == [True]


def test_an_agent_links_while_more_connections_than_may_shake_hands_say_no_more(
    guarded: tuple[Router, Agent], short_dir: Path
) -> None:
    router, _ = guarded
    with ExitStack() as stack:
        for number in range(2500):
            client = stack.enter_context(connect(router))
            if number % 2:
                client.sendall(GREETING)
        late = start_agent(short_dir / "late", router, client__token=TOKEN, client__router_key=router_key(router))
        stack.callback(late.stop)
        wait_until(lambda: late.uid in linked(router), 60, "the agent is linked")


def linked(router: Router) -> list[str]:
    return [one["peer"]["auth"]["uid"] for one in router.get("/connections").json()["connections"]]


def _unauthenticated(router: Router) -> int:
    text = router.get("/metrics").text
    return int(
        float(next(line.split()[-1] for line in text.splitlines() if line.startswith("prouter_broker_strangers ")))
    )
