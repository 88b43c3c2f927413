"""The cost of one agent, one record or one long list to the broker and everybody else is bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prouter.broker.base.settings import Bounds
from prouter.errors import KeyReused, PRouterError
from prouter.fabric.bounds import MAX_AGENT_REPLY, MAX_CONTROL, MAX_PAGE
from prouter.fabric.calls import Responder
from prouter.fabric.frames import EVENT, REPLY, Frame, pack_body
from prouter.fabric.retries import MARKS
from prouter.jobs import MAX_NAME, MAX_RECORD, JobRecord, Reason, State
from tests.support.broker_world import Agent, World, created, job_on, listed

UID = "5" * 32


def record(agent: Agent, uid: str = UID, **fields: Any) -> dict[str, Any]:
    wire = JobRecord(uid, agent.connection, "job", created_at=1.0, revision=1).to_wire()
    return {**wire, "state": "RUNNING", **fields}


def malformed(world: World) -> int:
    return world.env.counts["malformed"]


def say_event(agent: Agent, name: str, **body: Any) -> None:
    """Say it as an agent does that keeps to no limit."""
    agent.say(Frame(EVENT, payload=pack_body({"event": name, "body": body})))
    agent.world.run(1)


HUGE: list[dict[str, Any]] = [
    {"error": "e" * 1_900_000},
    {"error": "e" * 3_000_000},
    {"name": "n" * 600_000},
    {"args": ["a" * 60_000] * 20},
    {"args": [""] * 1_000_000},
    {"endpoint": {"socket": "s" * 1_000_000}},
    {"endpoint": {"host": "h" * 100_000, "port": 1}},
    {"signal": "S" * 1_000_000},
    {"ports": [65535] * 500_000},
    {"more": "m" * 1_000_000},
]


@pytest.mark.parametrize("fields", HUGE, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("how", ["job", "jobs"])
def test_a_huge_record_is_refused_alone_and_costs_no_link(how: str, fields: dict[str, Any]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    if how == "job":
        say_event(agent, "job", record=record(agent, **fields))
    else:
        say_event(agent, "jobs", jobs=[record(agent, **fields), record(agent, "6" * 32)], complete=True)
    assert malformed(world) == 1 or "ports" in fields or "more" in fields
    assert not worker.of("link.down")
    say_event(agent, "job", record=record(agent, "7" * 32))
    shown = {job["uid"] for job in listed(worker)}
    assert "7" * 32 in shown
    if how == "jobs" and len(str(fields)) < MAX_CONTROL:
        assert "6" * 32 in shown, "the others of its part are taken"
    for job in listed(worker):
        assert len(json.dumps(job)) < 2 * MAX_RECORD


def test_the_long_record_of_an_agent_of_an_earlier_version_is_shortened() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.notify("job", record=record(agent, args=["a" * 100_000, "b"], error="e" * 50_000, name="n" * 1000))
    (job,) = listed(worker)
    assert malformed(world) == 0
    assert job["args_shortened"]
    assert job["args"][0].endswith("…")
    assert len(job["name"]) == MAX_NAME
    assert len(pack_body(worker.of("job")[0]["record"])) <= MAX_RECORD


@pytest.mark.parametrize("op", ["jobs.start", "jobs.stop", "jobs.signal"])
def test_a_call_that_is_answered_with_too_much_fails(op: str) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call_id = worker.call(op, **job["at"], request={}, key="k", signal="SIGTERM", grace=1.0)
    (asked,) = agent.responder._running
    agent.say(Frame(REPLY, payload=pack_body({"id": asked, "value": {"record": "x" * MAX_AGENT_REPLY}})))
    world.run(1)
    answer = worker.results[call_id]
    assert isinstance(answer, PRouterError)
    assert answer.code == "answer_too_large"
    assert malformed(world) == 1
    assert not worker.of("link.down")


@pytest.mark.parametrize("value", ["x" * MAX_AGENT_REPLY, {"uid": 7}])
def test_a_job_whose_removal_is_answered_with_nonsense_is_removed(value: object) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call_id = worker.call("jobs.remove", **job["at"])
    (asked,) = agent.responder._running
    agent.say(Frame(REPLY, payload=pack_body({"id": asked, "value": {"record": value}})))
    world.run(1)
    assert worker.results[call_id]["job"]["uid"] == job["uid"]
    assert listed(worker) == []
    assert malformed(world) == 1


def test_a_call_that_breaks_every_path_fails_and_is_not_asked_again_at_once() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    paths = 1

    def broken_by(call_id: str) -> int:
        """How many paths it takes until the call fails, with an agent that dies of each."""
        nonlocal agent, paths
        first = paths
        while call_id not in worker.results:
            assert paths < first + 20
            if not any(op == "job.start" for op, _ in agent.asked_for):
                world.run(0.1)
                assert world.now < 1100
                continue
            world.vanish(agent)
            paths += 1
            agent = agent.again(paths)
            agent.silent, agent.responder = True, Responder()
            world.join(agent)
        return paths - first

    agent.silent = True
    call_id = worker.call("jobs.start", **job["at"], request={}, key="k")
    assert broken_by(call_id) == MARKS
    assert worker.results[call_id].code == "call_breaks_link"
    call_id = worker.call("jobs.start", **job["at"], request={}, key="other")
    assert worker.results[call_id].code == "call_breaks_link"
    agent.silent = False
    answer = worker.results[worker.call("jobs.stop", **job["at"], grace=1.0)]
    assert answer["job"]["uid"] == job["uid"], "other calls go through"


def test_an_agent_that_sends_much_is_read_more_slowly() -> None:
    world = World(bounds=Bounds(control_bytes=1_000_000))
    worker, agent = world.worker(), world.agent()
    say_event(agent, "job", record=record(agent, error="e" * 200_000))
    assert not world.paused
    say_event(agent, "job", record=record(agent, error="e" * 300_000))
    assert [round(seconds, 1) for _, seconds in world.paused] == [0.3]
    assert not worker.of("link.down")


def test_the_jobs_of_a_connection_are_bounded_in_number() -> None:
    world = World(bounds=Bounds(connection_jobs=3))
    worker, agent = world.worker(), world.agent()
    for number in range(5):
        agent.notify("job", record=record(agent, f"{number:031x}f"))
    assert len(listed(worker)) == 3
    assert malformed(world) == 2
    call_id = worker.call("jobs.create", name="one more", agent={"type": "uid", "uid": agent.uid}, key="k")
    assert worker.results[call_id].code == "protocol_error"
    agent.notify("job", record=record(agent, f"{0:031x}f", state="FINISHED", revision=2))
    agent.notify("job", record=record(agent, f"{7:031x}f"))
    assert len(listed(worker)) == 4, "ended ones count for the history"


def test_the_jobs_of_a_connection_are_bounded_in_bytes_also_as_they_grow() -> None:
    world = World(bounds=Bounds(connection_bytes=20_000))
    worker, agent = world.worker(), world.agent()
    for number in range(3):
        agent.notify("job", record=record(agent, f"{number:032x}", error="e" * 3000))
    for number in range(10):
        agent.notify("job", record=record(agent, f"{number:032x}", error="e" * 4000, revision=2))
    assert sum(len(json.dumps(job)) for job in listed(worker)) < 25_000
    assert malformed(world) > 0
    for number in range(3):
        agent.notify("job", record=record(agent, f"{number:032x}", state="FINISHED", revision=3))
    assert len(listed(worker, states=["FINISHED"])) == 3, "the end of a job always is told"


def test_a_list_that_never_ends_costs_nothing() -> None:
    world = World()
    _, agent = world.worker(), world.agent()
    link = world.broker.links.get(agent.connection)
    assert link is not None
    for number in range(50):
        jobs = [{"uid": f"{number}-{count}" + "x" * 200} for count in range(200)]
        say_event(agent, "jobs", jobs=jobs, complete=False)
        world.run(1)
    assert not link.listed


def pages(ask: Any) -> list[Any]:
    found, cursor = [], None
    while True:
        answer = ask(cursor)
        found.append(answer)
        cursor = answer["next"]
        if cursor is None:
            return found


def test_a_page_of_jobs_is_bounded_in_bytes_and_none_is_left_out() -> None:
    world = World()
    properties = {"long": "p" * 40_000}
    worker, agent = world.worker(), world.agent(properties=properties)
    for number in range(100):
        agent.notify("job", record=record(agent, f"{number:032x}", created_at=float(number)))
        world.run(0.1)
    answers = pages(lambda cursor: worker.ask("jobs.list", limit=250, cursor=cursor))
    assert all(len(answer["jobs"]) <= MAX_PAGE for answer in answers)
    shown = [job["uid"] for answer in answers for job in json.loads(b"[%b]" % answer["jobs"])]
    assert shown == [f"{number:032x}" for number in reversed(range(100))]
    first = worker.ask("jobs.list", limit=250, bytes=1)
    assert first["count"] == 1, "a single one always is in it"


def test_a_page_of_events_is_bounded_in_bytes_and_none_is_left_out() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.notify("job", record=record(agent))
    for number in range(250):
        agent.notify("job", record=record(agent, error="e" * 60_000, revision=number + 2))
        world.run(0.1)
    after, ids = 0, []
    while True:
        answer = worker.ask("events", after=after, limit=250)
        assert len(pack_body(answer)) < MAX_PAGE + 100_000
        if not answer["events"]:
            break
        ids += [event["id"] for event in answer["events"]]
        after = ids[-1]
    assert len(ids) >= 250
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_the_list_of_connections_comes_in_pieces_of_one_version() -> None:
    world = World()
    worker = world.worker()
    for number in range(60):
        world.agent(f"agent-{number}", f"{number:032x}", properties={"long": "p" * 40_000})
        world.run(0.1)

    def whole(between: Any = None) -> list[dict[str, Any]]:
        answer = worker.ask("connections")
        etag, pieces = answer["etag"], [answer["connections"]]
        while answer.get("next") is not None:
            assert len(answer["connections"]) <= MAX_PAGE
            if between is not None:
                between()
                between = None
            answer = worker.ask("connections", **{"of": etag, "from": answer["next"]})
            assert answer["etag"] == etag
            pieces.append(answer["connections"])
        assert len(pieces) > 2
        found: list[dict[str, Any]] = json.loads(b"".join(pieces))["connections"]
        return found

    assert len(whole()) == 60

    def changed() -> None:
        world.agent("agent-new", "e" * 32)
        world.run(0.1)
        world.worker("worker-2").ask("connections")

    assert len(whole(changed)) == 60, "the version that was begun"
    assert worker.ask("connections", **{"of": "unknown", "from": 7})["connections"].startswith(b'{"connections"')


def test_bridges_are_told_and_listed_in_parts() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    about = {"connection": agent.connection, "job": job["uid"], "url": "u" * 8000, "path": "p" * 8000}
    for part in range(10):
        bridges = [{"uid": f"{part}-{number}", "since": float(number), **about} for number in range(20)]
        worker.notify("bridges", bridges=bridges, first=part == 0)
        world.run(1)
    answers = pages(lambda cursor: worker.ask("bridges", **job["at"], cursor=cursor))
    assert len(answers) > 2
    shown = [(bridge["since"], bridge["uid"]) for answer in answers for bridge in answer["bridges"]]
    assert len(shown) == 200
    assert shown == sorted(shown)
    worker.notify("bridges", bridges=[])
    assert worker.ask("bridges", **job["at"])["bridges"] == []


def test_too_large_introductions_are_refused() -> None:
    world = World()
    refused = world.agent(properties={"long": "p" * 60_000})
    assert refused.refusal is not None
    assert refused.refusal[0] == "bad_hello"
    assert "properties" in refused.refusal[1]
    assert world.agent("agent-2", "c" * 32, properties={"long": "p" * 40_000}).ready


def test_the_history_is_bounded_in_bytes() -> None:
    world = World(bounds=Bounds(history_bytes=100_000))
    worker, agent = world.worker(), world.agent()
    jobs = []
    for number in range(40):
        jobs.append(job_on(worker, key=f"key-{number}"))
        agent.change(jobs[-1]["uid"], state=State.FINISHED, reason=Reason.EXITED, error="e" * 4000)
        world.run(0.2)
    assert 15 <= len(listed(worker)) <= 25
    assert world.broker.ledger.table.tally.ended_bytes <= 100_000
    assert {job["uid"] for job in listed(worker)} == {job["uid"] for job in jobs[-len(listed(worker)) :]}
    assert len(agent.jobs) == len(listed(worker)), "the agent removed the others"


@pytest.mark.parametrize("running", [True, False])
def test_a_key_with_another_body_is_refused(running: bool) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.silent = running
    about: dict[str, Any] = {"name": "job", "agent": {"type": "uid", "uid": agent.uid}, "key": "create k"}
    first = worker.call("jobs.create", **about, digest="d1")
    with pytest.raises(KeyReused):
        world.worker("worker-2").ask("jobs.create", **about, digest="d2")
    again = worker.call("jobs.create", **about, digest="d1")
    older = worker.call("jobs.create", **about)
    if running:
        agent.silent = False
        (asked,) = agent.responder._running
        agent.answer(asked, *agent.asked_for[-1])
    assert created(worker, first)["uid"] == created(worker, again)["uid"] == created(worker, older)["uid"]


def test_records_of_one_size_count_alike_alive_and_ended() -> None:
    world = World()
    _, agent = world.worker(), world.agent()
    table = world.broker.ledger.table
    agent.notify("job", record=record(agent, error="e" * 3000))
    alive = table.tally.live_bytes(agent.connection)
    agent.notify("job", record=record(agent, error="e" * 3000, state="FINISHED", revision=2))
    assert table.tally.live_bytes(agent.connection) == 0
    assert abs(table.tally.ended_bytes - alive) < 500
    entry = table.get(UID)
    assert entry is not None
    world.broker.ledger.forget(entry)
    assert table.tally.ended_bytes == 0


@pytest.mark.parametrize(
    "odd", [[UID, True, 1], [UID, 1.0, -5], [UID, 1.0, True], [UID, float("inf"), 1], [7, 1.0, 1], "x"]
)
def test_odd_usage_is_refused_alone(odd: object) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.notify("job", record=record(agent))
    agent.notify("job", record=record(agent, "6" * 32))
    agent.notify("usage", jobs=[odd, ["6" * 32, 2.5, 4096]])
    used = {job["uid"]: (job["cpu_seconds"], job["rss_bytes"]) for job in listed(worker)}
    assert used == {UID: (None, None), "6" * 32: (2.5, 4096)}
    assert malformed(world) == 1
