"""The broker's replies about jobs, without sockets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from prouter.broker.base.settings import Bounds
from prouter.errors import NotFound, Overloaded, PRouterError
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame
from prouter.jobs import JobRecord, Reason, State
from tests.support.broker_world import BY_UID, Agent, World, job_on, listed


def test_stale_news_of_a_job_is_ignored() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    agent.change(job["uid"], state=State.FINISHED, reason=Reason.EXITED)
    told = len(worker.of("job"))
    agent.notify("job", record=replace(agent.jobs[job["uid"]], revision=1, state=State.RUNNING).to_wire())
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "FINISHED"
    assert len(worker.of("job")) == told


def test_an_agent_cannot_speak_of_the_jobs_of_others() -> None:
    world = World()
    worker, _ = world.worker(), world.agent()
    rogue = world.agent("rogue", "d" * 32)
    job = job_on(worker)
    rogue.notify("job", record=JobRecord(job["uid"], "a" * 32, "mine", State.FINISHED, 99).to_wire())
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "NEW"
    rogue.notify("job", record=JobRecord(job["uid"], rogue.connection, "mine", State.FINISHED, 99).to_wire())
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "NEW"
    assert world.env.counts["malformed"] == 2


def test_a_removal_repeated_by_the_same_call_gives_the_same_answer() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    first = worker.call("jobs.remove", "call-1", **job["at"])
    worker.results.clear()
    world.broker.workers.gone(worker.uid, "restart", world.now)
    worker = world.worker()
    second = worker.call("jobs.remove", "call-1", **job["at"])
    assert first == second
    assert worker.results[second]["job"]["state"] == "NEW"
    with pytest.raises(NotFound):
        worker.ask("jobs.remove", **job["at"])
    assert [op for op, _ in agent.asked_for] == ["job.create", "job.remove"]


def test_a_removal_that_the_agent_told_of_first_is_still_the_callers_own() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    worker.call("jobs.remove", "call-1", **job["at"])
    agent.notify("job.removed", record=agent.jobs.pop(job["uid"]).to_wire())
    assert ("UPDATE jobs SET removal = ? WHERE uid = ?", ("call-1", job["uid"])) in world.recorder.statements
    world.broker.workers.gone(worker.uid, "restart", world.now)
    worker = world.worker()
    assert worker.ask("jobs.remove", **{"call_id": "call-1", **job["at"]})["job"]["state"] == "NEW"
    with pytest.raises(NotFound):
        worker.ask("jobs.remove", **job["at"])


def test_the_oldest_ended_jobs_are_forgotten_and_removed_from_their_agents() -> None:
    world = World(history=3)
    worker, agent = world.worker(), world.agent()
    jobs = [job_on(worker, key=f"key-{i}") for i in range(5)]
    for job in jobs:
        agent.change(job["uid"], state=State.FINISHED, reason=Reason.EXITED, finished_at=world.wall())
        world.run(0.2)
    kept = {info["uid"] for info in listed(worker)}
    assert kept == {job["uid"] for job in jobs[2:]}
    assert sorted(agent.jobs) == sorted(kept)


def test_bounds_are_answered_with_overloaded() -> None:
    world = World(bounds=Bounds(waits=1, link_calls=2))
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    worker.call("jobs.wait", until=None, **job["at"])
    with pytest.raises(Overloaded):
        worker.ask("jobs.wait", until=None, **job["at"])
    agent.silent = True
    for _ in range(2):
        worker.call("jobs.stop", grace=1, **job["at"])
    with pytest.raises(Overloaded):
        worker.ask("jobs.stop", grace=1, **job["at"])


def test_unknown_calls_and_nonsense_are_errors_not_crashes() -> None:
    world = World()
    worker = world.worker()
    world.agent()
    with pytest.raises(PRouterError, match="does not know the call 'nonsense'"):
        worker.ask("nonsense")
    for args in ({"name": 5}, {"name": "x", "agent": {"type": "bogus"}, "key": "k"}, {}):
        with pytest.raises(PRouterError):
            worker.ask("jobs.create", **args)
    for op in ("jobs.start", "jobs.wait", "jobs.info", "jobs.remove", "jobs.route", "agents.drain"):
        with pytest.raises(NotFound):
            worker.ask(op, connection="x", job=5)
    with pytest.raises(PRouterError):
        worker.ask("jobs.list", limit="many")
    with pytest.raises(PRouterError):
        worker.ask("jobs.list", cursor="?")
    assert world.broker.service.running == 0


def test_a_job_is_found_by_its_uid_alone() -> None:
    world = World()
    worker = world.worker()
    world.agent()
    job = job_on(worker)
    assert worker.ask("jobs.route", connection="", job=job["uid"])["record"]["uid"] == job["uid"]


def test_frames_that_make_no_sense_are_counted_once_per_peer_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    _, agent = world.worker(), world.agent()
    for frame in [Frame(99), Frame(16, payload=b"\xc1"), Frame(18, payload=b"\xc1"), Frame(17, payload=b"")] * 3:
        agent.say(frame)
    assert world.env.counts["malformed"] == 12
    assert sum("malformed_message" in record.message for record in caplog.records) == 1
    assert agent.ready


def test_farewell_reaches_everybody() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.broker.farewell("restart")
    world.settle()
    assert (worker.lost, agent.lost) == ("restart", "restart")


# -- what is told of jobs


def test_a_list_shows_jobs_as_their_info_does() -> None:
    world = World()
    worker, agent = world.worker(), world.agent(properties={"gpus": [1]})
    jobs = [job_on(worker, key=f"key-{number}") for number in range(4)]
    agent.change(jobs[1]["uid"], state=State.RUNNING, pid=7, args=["a", "b"], started_at=world.wall())
    agent.change(jobs[2]["uid"], state=State.FINISHED, exit_code=0, reason=Reason.EXITED, finished_at=world.wall())
    worker.ask("jobs.remove", **jobs[3]["at"])
    shown = listed(worker)
    assert [info["state"] for info in shown] == ["FINISHED", "RUNNING", "NEW"]
    assert shown == [worker.ask("jobs.info", **job["at"])["job"] for job in (jobs[2], jobs[1], jobs[0])]
    (removed,) = listed(worker, states=["CLOSED"])
    assert {**removed, "state": "NEW", "at": jobs[3]["at"]} == jobs[3]
    assert [info["state"] for info in listed(worker, states=["CLOSED", "NEW"])] == ["CLOSED", "NEW"]


def test_the_base_url_of_a_job_with_a_server_is_told() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    assert job["base_url"] is None
    agent.change(job["uid"], state=State.RUNNING, endpoint={"socket": "/run/x"})
    assert worker.ask("jobs.info", **job["at"])["job"]["base_url"] == f"{job['path']}/http/"


def test_what_running_jobs_use_is_shown_without_asking_their_agent() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job, other = job_on(worker), job_on(worker, key="key-2")
    agent.change(job["uid"], state=State.RUNNING)
    events = len(worker.of("job"))
    agent.notify("usage", jobs=[[job["uid"], 1.5, 4096], ["nobody's", 1.0, 1], [other["uid"], float("nan"), 1]])
    info = worker.ask("jobs.info", **job["at"])["job"]
    assert (info["cpu_seconds"], info["rss_bytes"]) == (1.5, 4096)
    assert listed(worker)[1] == info
    assert worker.ask("jobs.info", **other["at"])["job"]["cpu_seconds"] is None
    assert len(worker.of("job")) == events, "it is no event"
    agent.change(job["uid"], state=State.FINISHED, cpu_seconds=1.75, rss_bytes=8192)
    agent.notify("usage", jobs=[[job["uid"], 9.0, 9]])
    info = worker.ask("jobs.info", **job["at"])["job"]
    assert (info["cpu_seconds"], info["rss_bytes"]) == (1.75, 8192)


@pytest.mark.parametrize("usages", [None, [1], [["uid", 1.0]]])
def test_usage_that_makes_no_sense_is_malformed(usages: Any) -> None:
    world = World()
    agent = world.agent()
    agent.notify("usage", jobs=usages)
    assert world.env.counts["malformed"] == 1


def test_a_key_gives_the_first_answer_again_whatever_the_job_did_since() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    start = {"request": {}, "key": "start-1", **job["at"]}
    first = worker.ask("jobs.start", **start)["job"]
    assert first["state"] == "RUNNING"
    answers = agent.answer
    agent.answer = lambda call_id, op, args: agent.say(agent.responder.reply(call_id, {"record": record}))  # type: ignore[method-assign]
    record = agent.jobs[job["uid"]].to_wire()
    agent.change(job["uid"], state=State.FINISHED, exit_code=3, reason=Reason.EXITED, finished_at=world.wall())
    assert worker.ask("jobs.start", **start)["job"] == first
    assert worker.ask("jobs.info", **job["at"])["job"]["exit_code"] == 3
    agent.answer = answers  # type: ignore[method-assign]
    assert job_on(worker) == job
    worker.ask("jobs.remove", **job["at"])
    assert job_on(worker) == job


def test_connections_count_the_jobs_that_run_and_change_only_when_something_did() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()

    def shown() -> tuple[int, str]:
        world.run(3)
        answer = worker.ask("connections")
        (entry,) = json.loads(answer["connections"])["connections"]
        return entry["jobs"], answer["etag"]

    job = job_on(worker)
    none, etag = shown()
    agent.change(job["uid"], state=State.PENDING)
    pending, other = shown()
    agent.change(job["uid"], state=State.RUNNING)
    running, same = shown()
    agent.change(job["uid"], state=State.FINISHED)
    ended, _ = shown()
    assert (none, pending, running, ended) == (0, 1, 1, 0)
    assert etag != other == same


ODD_FIELDS: list[dict[str, Any]] = [
    {"uid": "a/../b"},
    {"uid": ".."},
    {"uid": 5},
    {"name": b"\xff"},
    {"revision": -1},
    {"revision": float("nan")},
    {"revision": 2**64 - 1},
    {"args": "abc"},
    {"args": [b"\xff"]},
    {"args": None},
    {"pid": 2**63},
    {"pid": "x"},
    {"ports": ["a"]},
    {"ports": [65536]},
    {"endpoint": {"port": "x"}},
    {"endpoint": {"socket": b"\xff"}},
    {"endpoint": [1]},
    {"path_mode": b"keep"},
    {"exit_code": 2**64 - 1},
    {"signal": b"\xff"},
    {"error": {"a": 1}},
    {"created_at": float("nan")},
    {"created_at": -1e17},
    {"started_at": float("inf")},
    {"finished_at": 1e300},
    {"cpu_seconds": float("inf")},
    {"rss_bytes": 2**64 - 1},
    {"state": []},
]


@pytest.mark.parametrize("odd", ODD_FIELDS, ids=str)
def test_a_record_that_makes_no_sense_is_refused_and_spoils_nobody_elses_list(odd: dict[str, Any]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job_on(worker)
    (known,) = listed(worker)
    agent.notify("job", record={**JobRecord("odd", agent.connection, "odd", created_at=1.0).to_wire(), **odd})
    assert world.env.counts["malformed"] == 1
    assert listed(worker) == [known]
    assert not world.env.counts["failures"]


def test_a_load_that_is_no_figure_is_not_shown() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    before = worker.connections()
    for load in (float("nan"), float("inf"), -1):
        agent.notify("load", load=load)
    assert worker.connections() == before


def test_an_answer_with_a_record_that_makes_no_sense_fails_that_create_alone() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    ((_op, args),) = agent.asked_for
    record = JobRecord(args["uid"], agent.connection, "job", pid=2**63, created_at=1.0).to_wire()
    (answered,) = agent.responder._running
    agent.say(agent.responder.reply(answered, {"record": record}))
    assert "malformed" in str(worker.results[call])
    assert listed(worker) == []


def test_long_lists_of_jobs_are_spread_over_turns() -> None:
    world = World()
    agent = world.agent()
    parts = [
        [JobRecord(f"job-{part}-{number}", agent.connection, "job", created_at=1.0).to_wire() for number in range(200)]
        for part in range(4)
    ]
    agent.say(*(event_frame("jobs", {"jobs": part, "complete": False}) for part in parts))
    assert len(world.broker.inbox) == 3, "one part is a turn's work"
    world.run(1.0)
    assert world.broker.ledger.table.tally.kept(agent.connection) == 800
    agent.notify("jobs", jobs=[*parts[0], parts[1][0]], complete=False)
    assert world.env.counts["malformed"] == 1


def test_what_an_agent_says_when_it_links_undoes_what_somebody_else_said_for_it() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    running, ended = job_on(worker), job_on(worker, key="key-2")
    for job in (running, ended):
        agent.change(job["uid"], state=State.RUNNING)
    wait = worker.call("jobs.wait", **ended["at"], until=None)
    world.vanish(agent)
    thief = agent.again(2)
    thief.jobs = {uid: replace(record, revision=10**6, pid=7) for uid, record in agent.jobs.items()}
    world.join(thief)
    assert worker.ask("jobs.info", **running["at"])["job"]["pid"] == 7
    world.vanish(thief)
    agent.change(ended["uid"], state=State.FINISHED, exit_code=0)
    world.join(agent.again(3))
    assert worker.ask("jobs.info", **running["at"])["job"]["pid"] is None
    assert worker.results[wait]["job"]["state"] == "FINISHED"
    agent = next(peer for peer in world.peers.values() if isinstance(peer, Agent))
    agent.change(running["uid"], state=State.FINISHED, exit_code=0)
    assert worker.ask("jobs.info", **running["at"])["job"]["state"] == "FINISHED"


def test_late_news_over_the_same_path_are_stale() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    agent.notify("job", record=replace(agent.jobs[job["uid"]], revision=0, state=State.NEW).to_wire())
    agent.notify("jobs", jobs=[replace(agent.jobs[job["uid"]], revision=0, pid=7).to_wire()], complete=False)
    assert worker.ask("jobs.info", **job["at"])["job"]["pid"] is None
