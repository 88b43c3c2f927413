"""Malicious accepted agents cannot take another's place, fill the broker's memory, or prevent its next start."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from prouter.broker.sockets.partial_messages import MOST
from prouter.errors import ProtocolError
from prouter.fabric.calls import read_event
from prouter.fabric.frames import DATA, EVENT, HELLO, PING, PONG, REFUSE, RESUME, Frame, decode, encode, pack_body
from prouter.fabric.frames import unpack_body as unpack
from prouter.transport.zmtp.codec import Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening
from tests.integration.test_attacks import resident
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

TOKEN = "token-of-this-test"
MIB = 1024 * 1024


def introduced(router: Router, uid: str, **changed: Any) -> socket.socket:
    """A connection whose handshake is over and that has said HELLO. libzmq takes no message before its own READY."""
    host, _, port = router.agents.rpartition(":")
    sock = socket.create_connection((host, int(port)), 5)
    sock.sendall(opening(b"DEALER", uuid.uuid4().hex.encode()))
    seen = Zmtp(b"ROUTER")
    while not seen.ready:
        # No more than the handshake: what follows is for whoever listens.
        seen.receive(sock.recv(1))
    sock.sendall(hello_message(uid, **changed))
    return sock


def hello_message(uid: str, **changed: Any) -> bytes:
    """The bytes of a HELLO."""
    hello = {"protocol": 1, "kind": "agent", "uid": uid, "name": uid, "incarnation": uuid.uuid4().hex, "token": TOKEN}
    hello |= {"process": uuid.uuid4().hex, "platform": {}, "properties": {}, "version": "0", "keep_for": 0, **changed}
    return b"".join(encode_message([b"", *encode([Frame(HELLO, payload=pack_body(hello))])]))


class Rogue:
    """An agent that is accepted, answers PING unless it is `mute`, and says what it likes."""

    def __init__(self, router: Router, uid: str, *, mute: bool = False, **changed: Any) -> None:
        self._mute = mute
        self.sock = introduced(router, uid, **changed)
        self.refusal: dict[str, Any] | None = None
        self.workers: set[str] = set()
        self.data: list[bytes] = []
        self.alive = True
        self._lock = threading.Lock()
        threading.Thread(target=self._hear, daemon=True).start()

    def send(self, frames: list[Frame], route: bytes = b"") -> None:
        with self._lock:
            for buffer in encode_message([route, *encode(frames)]):
                self.sock.sendall(buffer)

    def _hear(self) -> None:
        zmtp = Zmtp(b"ROUTER")
        zmtp.receive(opening(b"ROUTER"))  # The real one was heard already.
        with suppress(OSError, ProtocolError):  # The latter from large messages, which it is not made for.
            while arrived := self.sock.recv(1 << 18):
                for parts in zmtp.receive(arrived):
                    for frame in decode([bytes(part) for part in parts[1:]]):
                        self._heard(frame)
        self.alive = False

    def _heard(self, frame: Frame) -> None:
        if frame.type == PING and not self._mute:
            self.send([Frame(PONG, offset=frame.offset)])
        elif frame.type == REFUSE:
            self.refusal = unpack(frame.payload)
        elif frame.type == DATA:
            self.data.append(bytes(frame.payload))
        elif frame.type == EVENT:
            name, body = read_event(frame)
            self.workers |= set(body.get("workers", [])) | ({body["worker"]} if name == "worker.up" else set())

    def __enter__(self) -> Rogue:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@pytest.fixture(scope="module")
def pair(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        router = start_router(short_dir / "rogues", server__accept_tokens=[TOKEN])
        stack.callback(router.stop)
        agent = start_agent(short_dir / "honest", router, client__token=TOKEN)
        stack.callback(agent.stop)
        yield router, agent


def up(router: Router) -> dict[str, bool]:
    return {one["peer"]["auth"]["uid"]: one["up"] for one in router.get("/connections").json()["connections"]}


def test_who_knows_a_jobs_path_is_not_taken_for_its_agent(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    connection = router.create(agent.uid).split("/")[2]
    for incarnation in (connection, uuid.uuid4().hex):
        with Rogue(router, agent.uid, incarnation=incarnation) as rogue:
            wait_until(lambda rogue=rogue: rogue.refusal, 10, "it is refused")  # type: ignore[misc]
            assert rogue.refusal is not None
            assert rogue.refusal["code"] == "uid_in_use"
    with Rogue(router, "another", incarnation=connection) as rogue:
        wait_until(lambda: up(router).get("another"), 10, "it is welcome as another agent")
    assert up(router)[agent.uid]
    assert "event=link_down link=" + connection not in router.log.read_text()


def test_messages_that_are_never_finished_do_not_fill_the_brokers_memory(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    broker = router.child("broker")
    part = bytes(15 * MIB)
    head = (3).to_bytes(1, "big") + len(part).to_bytes(8, "big")  # One of several parts, of so many bytes.
    before, peak = resident(broker), 0
    with ExitStack() as stack:
        for number in range(16):
            # A PONG in the middle of a message would finish it.
            rogue = stack.enter_context(Rogue(router, f"unfinished-{number}", mute=True))
            wait_until(lambda rogue=rogue: rogue.workers, 10, "it is linked")  # type: ignore[misc]
            rogue.sock.settimeout(10)
            rogue.sock.sendall(b"\x01\x00" + (head + part) * 3 + head + part[:-1])
            peak = max(peak, resident(broker))
        wait_until(lambda: router.log.read_text().count("event=message_unfinished") >= 7, 20, "some are cut off")
        assert up(router)[agent.uid]
    assert peak - before < 2 * MOST + 90 * MIB, "of 960 MiB; it looks at connections ten times a second"
    wait_until(lambda: resident(broker) < before + 100 * MIB, 10, "the memory is given back")


def test_a_worker_that_stands_still_costs_little_memory_whatever_an_agent_sends_it(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    broker = router.child("broker")
    with Rogue(router, "flood") as rogue:
        wait_until(lambda: rogue.workers, 10, "it knows a worker")
        worker = min(rogue.workers)
        pid = int(re.findall(rf"event=worker_up worker={worker} pid=(\d+)", router.log.read_text())[-1])
        before, peak, sent = resident(broker), 0, 0
        frames = [Frame(DATA, sid=9, offset=i << 18, payload=bytes(1 << 18)) for i in range(4)]
        os.kill(pid, signal.SIGSTOP)
        try:
            rogue.sock.settimeout(1)
            end, late = time.monotonic() + 2, time.monotonic() + 20
            with suppress(OSError):
                # On a busy machine 2 s are too short to send more than the broker queues.
                while time.monotonic() < end or (sent <= 128 * MIB and time.monotonic() < late):
                    rogue.send(frames, worker.encode())
                    sent += MIB
                    peak = max(peak, resident(broker))
        finally:
            os.kill(pid, signal.SIGCONT)
    assert sent > 80 * MIB, "more than is kept"
    assert peak - before < 160 * MIB
    assert router.child("broker") == broker
    assert router.create(agent.uid)
    assert up(router)[agent.uid]


def test_frames_of_no_use_cost_their_sender_its_link(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    with Rogue(router, "useless") as rogue:
        wait_until(lambda: rogue.workers, 10, "it knows a worker")
        worker = min(rogue.workers).encode()
        frames = [Frame(RESUME, sid=9 + i) for i in range(500)]
        end = time.monotonic() + 20
        with suppress(OSError):
            while time.monotonic() < end and rogue.alive:
                rogue.send(frames, worker)
        wait_until(lambda: not up(router).get("useless"), 10, "its link is given up")
    assert up(router)[agent.uid]


def test_links_that_were_left_behind_do_not_keep_a_router_from_starting(pair: tuple[Router, Agent]) -> None:
    router, agent = pair
    held: list[socket.socket] = []
    for number in range(1500):
        uid = f"{number:05d}" + "u" * 120
        held.append(introduced(router, uid, name="n" * 128, process="p" * 128, keep_for=31536000))
        if len(held) > 100:
            held.pop(0).close()
    for sock in held:
        sock.close()
    wait_until(lambda: sum(not there for there in up(router).values()) > 100, 20, "they are away")
    assert sum(not there for there in up(router).values()) < 1300
    router.kill_broker()
    wait_until(lambda: router.get("/info").status_code == 200 and up(router).get(agent.uid), 30, "the agent is back")
    assert router.create(agent.uid)
