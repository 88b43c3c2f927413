"""An agent survives every message that a router, or an impostor, may send."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from prouter.fabric.frames import BULK, BYE, HELLO, REFUSE, RESET, WELCOME, Frame, pack_body
from prouter.requests import StartRequest
from tests.fuzz.models import paths, put
from tests.fuzz.rogue_router import CONNECTION, RogueRouter
from tests.fuzz.values import NUMBERS, VALUES
from tests.support.processes import Agent

MIB = 1024 * 1024
START: dict[str, Any] = {"args": ["true"], "env": {}, "port_expected_count": 0}
TARGET: dict[str, Any] = {
    "path": b"f", "offset": 0, "length": None, "remove": False, "recursive": False, "mode": 0o644, "executable": False,
    "size": 0, "include": [], "exclude": [], "format": "tar", "name": "stdout", "tail": None, "follow": False,
    "conditions": None,
}  # fmt: skip
KINDS: list[Any] = [
    "file.read", "file.write", "file.list", "file.stat", "file.delete", "file.mkdir", "file.write.if", "file.delete.if",
    "file.mkdir.if", "archive.read", "archive.write", "archive.write.if", "log", "http", "x", None, 7, [],
]  # fmt: skip
PATHS = [b"../x", b"/", b"a\0b", b"x" * 5000, b"/".join([b"d"] * 300), {"if_match": "x"}, {"if_none_match": ["*"]}]

Pair = tuple[RogueRouter, Agent]


@pytest.fixture(scope="module")
def pair(short_dir: Path) -> Iterator[Pair]:
    router = RogueRouter()
    agent = router.start_agent(short_dir / "fuzzed")
    yield router, agent
    agent.stop()
    router.close()


@pytest.fixture(autouse=True)
def the_agent_is_as_before(pair: Pair) -> Iterator[None]:
    router, agent = pair
    process = psutil.Process(agent.pid)
    before = process.memory_info().rss
    yield
    router.settle()
    log = agent.log.read_text(errors="replace")
    assert "Traceback" not in log, log[max(0, log.index("Traceback") - 500) :][:3000]
    assert process.memory_info().rss - before < 64 * MIB


def created(router: RogueRouter) -> str:
    uid = uuid.uuid4().hex
    answer = router.answer(router.call("job.create", {"uid": uid, "connection": CONNECTION, "name": "x"}))
    assert answer["value"]["record"]["state"] == "NEW"
    return uid


def sampled(cases: list[Any], count: int) -> list[Any]:
    return Random(1).sample(cases, min(count, len(cases)))


def test_calls_may_hold_anything_anywhere(pair: Pair) -> None:
    router, _ = pair
    good = {"uid": "", "connection": CONNECTION, "name": "x", "request_id": "k", "signal": "SIGTERM", "grace": 0.1}
    operations = ["job.create", "job.start", "job.remove", "job.signal", "job.stop", "job.usage", "drain", "x", ""]
    cases = [(op, key, value) for op in operations for key in [*good, "on"] for value in VALUES]
    for op, key, value in sampled(cases, 400):
        uid = uuid.uuid4().hex
        calls = [router.call("job.create", {**good, "uid": uid})] if op != "job.create" else []
        calls += [router.call(op, {**good, "uid": uid, "request": START, key: value})]
        calls += [router.call("drain", {"on": False}), router.call("job.remove", {"uid": uid})]
        for call in calls:
            assert router.answer(call).get("error", {}).get("code") != "error", (op, key, value)


def test_a_start_may_hold_anything_anywhere(pair: Pair) -> None:
    router, _ = pair
    cases = [(steps, value) for steps in paths(StartRequest) for value in VALUES]
    for steps, value in sampled(cases, 400):
        uid = created(router)
        call = router.call("job.start", {"uid": uid, "request_id": "k", "request": put(START, steps, value)})
        removal = router.call("job.remove", {"uid": uid})
        assert router.answer(call).get("error", {}).get("code") != "error", (steps, value)
        assert "value" in router.answer(removal)


def test_events_may_hold_anything(pair: Pair) -> None:
    router, _ = pair
    for name in ("workers", "worker.up", "worker.down", "linked", "x"):
        for value in VALUES:
            router.event(name, value)
            for key in ("workers", "worker", "connection"):
                router.event(name, {key: value})
                router.event(name, {key: [value]})
    for value in VALUES:
        router.event(value, {})


def test_frames_may_be_of_any_kind(pair: Pair) -> None:
    router, _ = pair
    random = Random(1)
    router.new_worker()
    numbers = [number for number in NUMBERS if type(number) is int and number >= 0]
    for kind in set(range(64)) - {HELLO, WELCOME, REFUSE, BYE}:
        for value in sampled(VALUES, 25):
            flags, (sid, offset, ack) = random.choice([0, 1, 4, 255 & ~BULK]), random.choices(numbers, k=3)
            route = random.choice([b"", router.worker, b"\xff" * 300])
            router.say(Frame(kind, flags, sid, offset, ack, pack_body({"x": value, "code": value})), route=route)
        router.settle()


def test_streams_may_ask_for_anything(pair: Pair) -> None:
    router, _ = pair
    job = created(router)
    router.new_worker()
    values = [*VALUES, *PATHS]
    cases = [(kind, key, value) for kind in KINDS for key in ["job", *TARGET] for value in values]
    cases = [(kind, key, value) for kind, key, value in cases if (key, value) != ("follow", True)]
    asked = {}
    for kind, key, value in sampled(cases, 2500):
        asked[router.open({"kind": kind, "job": job, **TARGET, key: value})] = (kind, key, value)
        while router.hear():
            pass
    router.until(lambda: all(map(router.over, asked)), "each stream ends")
    for sid, case in asked.items():
        for frame in router.streams[sid]:
            assert frame.type != RESET or b"internal" not in bytes(frame.payload), case


@pytest.mark.parametrize("key", ["router", "connection", "incarnation", "mode", "draining"])
def test_a_welcome_may_hold_anything(pair: Pair, key: str) -> None:
    router, _ = pair
    good = dict(router.welcome)
    for value in [*sampled(VALUES, 12), None]:
        router.welcome = {**good, key: value} if value is not None else good
        before = router.hellos
        router.say(Frame(BYE, payload=pack_body({"reason": value})))
        router.until(lambda before=before: router.hellos > before, "the agent dials again")
    created(router)
