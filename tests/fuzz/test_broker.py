"""The broker survives every message of an agent or an unauthenticated peer, and nobody else notices."""

from __future__ import annotations

import json
from dataclasses import fields
from random import Random
from typing import Any

import pytest

from prouter.errors import ProtocolError, PRouterError
from prouter.fabric.frames import EVENT, REPLY, Frame, pack_body
from prouter.jobs import JobRecord, State
from tests.fuzz.values import VALUES, any_value
from tests.support.broker_world import Agent, World, job_on, listed

UID = "5" * 32
HELLO_KEYS = [
    "protocol", "kind", "uid", "name", "incarnation", "process", "token", "platform", "properties", "version",
    "capacity", "draining", "keep_for", "orphan_timeout",
]  # fmt: skip
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("jobs.create", {}),
    ("jobs.start", {"request": {}, "key": "k"}),
    ("jobs.stop", {"grace": 1.0}),
    ("jobs.signal", {"signal": "SIGTERM"}),
    ("jobs.remove", {}),
    ("jobs.info", {"usage": True}),
]
ERROR_KEYS = ("code", "detail", "status", "kind", "retry_after", "job", "state")


class Stand:
    """A broker with a worker, an honest agent with a job, and a rogue agent."""

    def __init__(self) -> None:
        self.world = World()
        self.worker = self.world.worker()
        self.honest = self.world.agent()
        self.job = job_on(self.worker)
        self.rogue = self.world.agent("rogue", "d" * 32)
        self.before = self.worker.ask("jobs.info", **self.job["at"])

    def record(self, **changed: Any) -> dict[str, Any]:
        wire = JobRecord(UID, self.rogue.connection, "job", State.RUNNING, created_at=1.0, revision=1).to_wire()
        return {**wire, **changed}

    def event(self, name: Any, body: Any) -> None:
        """Send an event from the rogue, at most ten a second."""
        self.rogue.say(Frame(EVENT, payload=pack_body({"event": name, "body": body})))
        self.world.run(0.1)

    def check(self) -> None:
        """Check that all lists can be written as JSON, and the honest agent's job is unchanged."""
        assert self.rogue.ready
        self.rogue.notify("job", record=self.record(uid="7" * 32))
        good = self.worker.ask("jobs.info", connection=self.rogue.connection, job="7" * 32)
        assert good["job"]["state"] == "RUNNING"
        told: list[Any] = [*listed(self.worker), *self.worker.connections(), *(body for _, body in self.worker.events)]
        assert max(len(json.dumps(item, allow_nan=False)) for item in told) < 300_000
        assert self.worker.ask("jobs.info", **self.job["at"]) == self.before
        assert self.honest.ready
        assert self.honest.connection not in [body["connection"] for body in self.worker.of("link.down")]


@pytest.mark.parametrize("name", [field.name for field in fields(JobRecord)])
def test_a_record_may_hold_anything_anywhere(name: str) -> None:
    stand = Stand()
    for number, value in enumerate(VALUES):
        changed = {"uid": f"{number:032x}", name: value}
        stand.event("job", {"record": stand.record(**changed)})
        stand.event("job.removed", {"record": stand.record(**changed)})
    stand.check()


@pytest.mark.parametrize(
    ("name", "key"),
    [("job", "record"), ("jobs", "jobs"), ("job.removed", "record"), ("usage", "jobs"), ("load", "cpu"), ("x", "y")],
)
def test_an_event_may_hold_anything(name: str, key: str) -> None:
    stand = Stand()
    for value in VALUES:
        stand.event(name, value)
        stand.event(name, {key: value, "complete": False})
        stand.event(name, {key: [value] * 3})
        stand.event("usage", {"jobs": [[UID, value, 1], [UID, 1.0, value], [value, 1.0, 1]]})
    stand.check()


@pytest.mark.parametrize("seed", range(4))
def test_events_may_be_mixed_up(seed: int) -> None:
    random = Random(seed)
    stand = Stand()
    names = ["job", "jobs", "job.removed", "usage", "load", "strays", "links", "linked", "worker.up", "x"]
    for _ in range(200):
        wire = stand.record()
        for name in random.sample(sorted(wire), random.randrange(1, 4)):
            wire[name] = any_value(random)
        body = {"record": wire, "jobs": [wire, any_value(random)], "complete": random.choice([True, False, 7])}
        for _ in range(random.randrange(3)):
            body[random.choice(["record", "jobs", "load", "cpu", "running"])] = any_value(random)
        stand.event(random.choice(names), body)
    stand.check()


def test_an_introduction_may_hold_anything_anywhere() -> None:
    stand = Stand()
    for number, (key, value) in enumerate((key, value) for key in HELLO_KEYS for value in VALUES):
        stranger = Agent(stand.world, f"r{number}", f"{number:032x}")
        stranger.hello[key] = value
        try:
            stand.world.join(stranger)
        except ProtocolError:
            continue  # The shell closes such a connection.
        if number % 20 == 0:
            stand.world.run(0.1)
    stand.check()


def replies(call_id: str, value: Any) -> list[dict[str, Any]]:
    """Replies to a call with a wrong value in each place."""
    odd_error = dict.fromkeys(ERROR_KEYS, value)
    return [
        {"id": call_id, "value": value},
        {"id": call_id, "value": {"record": value}},
        {"id": call_id, "error": value},
        {"id": call_id, "error": odd_error},
    ]


@pytest.mark.parametrize(("op", "args"), CALLS, ids=[op for op, _ in CALLS])
def test_a_call_may_be_answered_with_anything(op: str, args: dict[str, Any]) -> None:
    stand = Stand()
    worker, rogue = stand.worker, stand.rogue
    for number, value in enumerate(VALUES):
        for shape in range(4):
            rogue.silent = op == "jobs.create"
            agent = {"type": "uid", "uid": "rogue"}
            asked = worker.call("jobs.create", name="job", agent=agent, key=f"{number} {shape}")
            if op != "jobs.create":
                rogue.silent = True
                uid = worker.results[asked]["job"]["uid"]
                asked = worker.call(op, connection=rogue.connection, job=uid, **args)
            for running in list(rogue.responder._running):
                rogue.responder.forget(running)
                rogue.say(Frame(REPLY, payload=pack_body(replies(running, value)[shape])))
            stand.world.run(0.1)
            answer = worker.results.pop(asked)
            if isinstance(answer, PRouterError):
                assert 400 <= answer.status < 600
                assert len(answer.detail) < 10_000
                json.dumps([answer.code, answer.detail, answer.job, answer.state, answer.retry_after], allow_nan=False)
    stand.check()
