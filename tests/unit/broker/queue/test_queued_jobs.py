"""Jobs that wait in the router's queue, through a broker with workers and agents, without I/O."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.errors import Conflict, InvalidRequest, KeyReused, LimitReached, NotFound
from tests.support.broker_world import Agent, World, created, listed, restarted
from tests.support.queued_jobs import ANY, ONE, end, info, queued, start, starts


def test_a_job_waits_for_a_slot_and_keeps_its_path() -> None:
    world = World()
    worker, agent = world.worker(), world.agent(capacity=ONE)
    first = queued(worker, "first")
    assert (first["phase"], first["position"], first["agent"]["uid"]) == (None, None, "agent-1")
    second = queued(worker, "second", **start("second", "true"))
    assert (second["state"], second["phase"], second["position"]) == ("NEW", "queued", 1)
    assert second["agent"]["uid"] == ""
    assert second["path"].startswith("/jobs/queue-")
    third = queued(worker, "third")
    assert [job["position"] for job in listed(worker, states=["NEW"])][:2] == [2, 1]
    end(agent, first, world)
    placed = info(worker, second)
    assert (placed["path"], placed["agent"]["uid"], placed["phase"]) == (second["path"], "agent-1", "ready")
    assert placed["created_at"] == second["created_at"]
    assert starts(agent) == [second["uid"]]
    assert info(worker, third)["position"] == 1
    end(agent, second, world)
    assert info(worker, third)["phase"] is None
    assert world.broker.stats(world.now)["queue.waiting"] == 0


def test_without_a_queue_the_request_is_refused_as_before() -> None:
    world = World()
    worker, _ = world.worker(), world.agent(capacity=ONE)
    queued(worker, "first")
    with pytest.raises(LimitReached):
        created(worker, worker.call("jobs.create", name="x", agent=ANY, key="x"))


def test_a_job_whose_time_is_up_fails() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", timeout=5.0)
    call = worker.call("jobs.wait", until=None, **job["at"])
    world.run(4.0)
    assert call not in worker.results
    world.run(2.0)
    told = info(worker, job)
    assert (told["state"], told["reason"], told["phase"]) == ("FINISHED", "queue_timeout", "failed")
    assert worker.results[call]["ended"]
    world.agent()
    world.run(1.0)
    assert info(worker, job)["state"] == "FINISHED"


def test_owners_take_turns() -> None:
    world = World()
    worker, agent = world.worker(), world.agent(capacity=ONE)
    jobs = {"running": queued(worker, "running")}
    for number in range(3):
        jobs[f"a{number}"] = queued(worker, f"a{number}", owner="ann")
    jobs["b0"] = queued(worker, "b0", owner="bob")
    order, running = [], "running"
    for _ in range(4):
        end(agent, jobs.pop(running), world)
        running = next(name for name, job in jobs.items() if info(worker, job)["phase"] is None)
        order.append(running)
    assert order == ["a0", "b0", "a1", "a2"]


def test_a_small_job_passes_a_large_one_until_an_agent_is_reserved() -> None:
    world = World(queue_reserve_after=10.0)
    worker = world.worker()
    agent = world.agent(capacity={"max": None, "resources": {"cpus": 2}})
    small = [queued(worker, f"s{i}", agent={**ANY, "resources": {"cpus": 1}}) for i in range(2)]
    large = queued(worker, "large", 900.0, agent={**ANY, "resources": {"cpus": 2}})
    more = [queued(worker, f"m{i}", 900.0, agent={**ANY, "resources": {"cpus": 1}}) for i in range(4)]
    end(agent, small[0], world)
    assert info(worker, more[0])["phase"] is None
    world.run(12.0)
    end(agent, small[1], world)
    assert info(worker, more[1])["phase"] is None
    end(agent, more[0], world)
    told = worker.ask("jobs.explain", **large["at"])["findings"]
    assert "agent 'agent-1' takes no other job" in told[1]["text"]
    assert info(worker, more[2])["phase"] == "queued"
    end(agent, more[1], world)
    assert info(worker, large)["phase"] is None
    end(agent, large, world)
    assert [info(worker, job)["phase"] for job in more[2:]] == [None, None]


@pytest.mark.parametrize("expires", [True, False])
def test_an_agent_is_kept_free_no_longer_than_the_job_waits(expires: bool) -> None:
    world = World(queue_reserve_after=0.0)
    worker = world.worker()
    agent = world.agent(capacity={"max": None, "resources": {"cpus": 2}})
    one = {**ANY, "resources": {"cpus": 1}}
    small = [queued(worker, f"s{i}", agent=one) for i in range(2)]
    large = queued(worker, "large", 20.0, agent={**ANY, "resources": {"cpus": 2}})
    more = [queued(worker, f"m{i}", 900.0, agent=one) for i in range(3)]
    end(agent, small[0], world)
    end(agent, small[1], world)
    assert [info(worker, job)["phase"] for job in more] == [None, None, "queued"]
    end(agent, more[0], world)
    assert info(worker, more[2])["phase"] == "queued"
    with pytest.raises(LimitReached, match="kept free"):
        created(worker, worker.call("jobs.create", name="x", agent=one, key="x"))
    if expires:
        world.run(21.0)
    else:
        worker.ask("jobs.remove", **large["at"])
        world.run(0.2)
    assert info(worker, more[2])["phase"] is None
    end(agent, more[1], world)
    assert created(worker, worker.call("jobs.create", name="x", agent=one, key="x"))["agent"]["uid"] == "agent-1"


def test_a_removed_job_leaves_the_queue() -> None:
    world = World()
    worker = world.worker()
    first, second = queued(worker, "first"), queued(worker, "second")
    worker.ask("jobs.remove", **first["at"])
    assert info(worker, second)["position"] == 1
    agent = world.agent()
    world.run(1.0)
    assert list(agent.jobs) == [second["uid"]]
    with pytest.raises(NotFound):
        info(worker, first)


def test_a_start_while_it_waits_is_carried_out_later() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first")
    request = {"request": {"args": ["true"], "env": {}}, "key": "k"}
    assert worker.ask("jobs.start", **job["at"], **request)["job"]["phase"] == "queued"
    assert worker.ask("jobs.start", **job["at"], **request)["job"]["phase"] == "queued"
    with pytest.raises(Conflict, match="was started already"):
        worker.ask("jobs.start", **job["at"], **{**request, "key": "other"})
    with pytest.raises(KeyReused):
        worker.ask("jobs.start", **job["at"], **{**request, "request": {"args": ["false"]}})
    with pytest.raises(Conflict, match="waits in the queue"):
        worker.ask("jobs.stop", **job["at"], grace=1.0)
    agent = world.agent()
    world.run(1.0)
    assert starts(agent) == [job["uid"]]
    assert info(worker, job)["phase"] == "ready"


def test_a_wait_ends_once_an_agent_has_a_job_that_nobody_started() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first")
    call = worker.call("jobs.wait", until=None, **job["at"])
    assert call not in worker.results
    world.agent()
    world.run(1.0)
    assert worker.results[call]["job"]["state"] == "NEW"


def test_a_start_that_the_agent_refuses_fails_the_job() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", **start("first", "true"))
    agent = world.agent()
    agent.fails["job.start"] = InvalidRequest("Invalid request: no such preset")
    world.run(1.0)
    told = info(worker, job)
    assert (told["state"], told["reason"], told["phase"]) == ("FINISHED", "start_failed", "failed")
    assert "no such preset" in told["error"]
    assert agent.jobs == {}


def test_the_same_key_gives_the_same_queued_job() -> None:
    world = World()
    worker = world.worker()
    first = queued(worker, "first", digest="d1")
    assert queued(worker, "first", digest="d1")["uid"] == first["uid"]
    with pytest.raises(KeyReused):
        queued(worker, "first", digest="d2")
    later = restarted(world)
    again = later.worker()
    assert queued(again, "first", digest="d1")["uid"] == first["uid"]
    agent = later.agent()
    later.run(1.0)
    assert queued(again, "first", digest="d1")["path"] == first["path"]
    assert list(agent.jobs) == [first["uid"]]


def test_the_queue_outlives_the_broker() -> None:
    world = World()
    worker = world.worker()
    jobs = [queued(worker, f"j{i}", owner=owner, **start(f"j{i}", "true")) for i, owner in enumerate("aab")]
    positions = [info(worker, job)["position"] for job in jobs]
    later = restarted(world)
    worker = later.worker()
    assert [info(worker, job)["position"] for job in jobs] == positions == [1, 3, 2]
    agent = later.agent(capacity=ONE)
    later.run(1.0)
    assert starts(agent) == [jobs[0]["uid"]]
    assert info(worker, jobs[0])["path"] == jobs[0]["path"]


@pytest.mark.parametrize("silent", [True, False])
def test_a_broker_that_dies_after_an_assignment_asks_the_same_agent_again(silent: bool) -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", **start("first", "true"))
    agent = world.agent()
    agent.silent = True
    world.run(1.0)
    assert info(worker, job)["phase"] == "queued"
    later = restarted(world)
    worker = later.worker()
    other = later.agent("agent-2", "d" * 32)
    later.run(1.0)
    assert other.jobs == {}
    back = Agent(later, agent.uid, agent.incarnation, 2)
    if not silent:  # The agent has created the job, and its answer was lost with the broker.
        agent.answer("0", "job.create", dict(agent.asked_for[-1][1]))
        back.jobs = agent.jobs
    later.join(back)
    later.run(1.0)
    assert list(back.jobs) == [job["uid"]]
    assert starts(back) == [job["uid"]]
    assert info(worker, job)["phase"] == "ready"


def test_an_agent_that_dies_before_it_answers_gives_the_job_back() -> None:
    world = World(max_absence=5.0)
    worker = world.worker()
    job = queued(worker, "first", **start("first", "true"))
    agent = world.agent()
    agent.silent = True
    world.run(1.0)
    world.vanish(agent)
    world.run(30.0)
    other = world.agent("agent-2", "d" * 32)
    world.run(1.0)
    assert list(other.jobs) == starts(other) == [job["uid"]]
    # The first agent lives after all, and has the job as well: it has to remove it.
    back = Agent(world, agent.uid, agent.incarnation, 2)
    agent.silent = False
    back.jobs = {job["uid"]: other.jobs[job["uid"]].__class__(job["uid"], back.connection, "first", client="x")}
    world.join(back)
    world.run(1.0)
    assert back.jobs == {}
    assert starts(back) == []
    assert info(worker, job)["agent"]["uid"] == "agent-2"


def test_an_agent_that_refuses_is_asked_again_once_it_tells_its_load() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first")
    agent = world.agent()
    agent.fails["job.create"] = LimitReached("full")
    world.run(1.0)
    asked = [op for op, _ in agent.asked_for].count("job.create")
    assert asked <= 2
    assert info(worker, job)["phase"] == "queued"
    agent.fails.clear()
    agent.notify("load", load=0.0, running=0, draining=False, used={})
    world.run(1.0)
    assert list(agent.jobs) == [job["uid"]]


@pytest.mark.parametrize("key", ["", "d" * 32])
def test_a_job_that_may_wait_is_queued_if_the_agent_that_was_chosen_has_no_space_after_all(key: str) -> None:
    world = World()
    worker, agent = world.worker(), world.agent(routers=2)
    agent.fails["job.create"] = LimitReached("the job of another router was faster")
    job = queued(worker, "first", digest=key)
    world.run(1.0)
    assert info(worker, job)["phase"] == "queued"
    agent.fails.clear()
    agent.notify("load", load=0.0, running=0, draining=False, used={})
    world.run(1.0)
    assert list(agent.jobs) == [job["uid"]]


def test_a_full_queue_takes_no_job_that_an_agent_refused() -> None:
    world = World(queue_size=1)
    worker, agent = world.worker(), world.agent()
    agent.fails["job.create"] = LimitReached("full")
    queued(worker, "first")
    with pytest.raises(LimitReached):
        queued(worker, "second", agent={"type": "any", "strategy": "pack"})


def test_the_queue_is_bounded() -> None:
    world = World(queue_size=2)
    worker = world.worker()
    for name in ("a", "b"):
        queued(worker, name)
    with pytest.raises(LimitReached, match="queue has 2 jobs") as refusal:
        queued(worker, "c")
    assert refusal.value.limit is not None
    assert refusal.value.limit.name == "queue.size"


@pytest.mark.parametrize(
    ("hello", "selector", "told"),
    [
        (None, {}, "no agent is connected"),
        ({"properties": {"gpus": 1}}, {"require": {"gpus": {">=": 2}}}, "no connected agent fulfils gpus >= 2"),
        ({"capacity": {"max": 0}}, {}, "no free slot on agent 'agent-1'"),
        ({"draining": True}, {}, "agent 'agent-1' is draining"),
        ({"capacity": {"max": None, "resources": {"x": 1}}}, {"resources": {"x": 2}}, "no connected agent has x 2"),
    ],
)
def test_explain_says_why_it_waits(hello: dict[str, Any] | None, selector: dict[str, Any], told: str) -> None:
    world = World()
    worker = world.worker()
    if hello is not None:
        world.agent(**hello)
    job = queued(worker, "first", agent={**ANY, **selector})
    findings = worker.ask("jobs.explain", **job["at"])["findings"]
    assert "position 1" in findings[0]["text"]
    assert told in findings[-1]["text"]


def test_explain_does_not_tell_a_queued_job_to_wait_in_the_queue() -> None:
    world = World()
    worker = world.worker()
    world.agent(capacity={"max": None, "resources": {"x": 1}})
    wanted = {**ANY, "resources": {"x": 1}}
    queued(worker, "first", agent=wanted)
    finding = worker.ask("jobs.explain", **queued(worker, "second", agent=wanted)["at"])["findings"][-1]
    assert finding["text"] == "no agent has x 1 left"
    assert "wait until jobs end there" in finding["todo"]


def test_an_agent_that_stays_away_fails_no_queued_job() -> None:
    world = World(hold=1.0)
    worker, agent = world.worker(), world.agent()
    world.vanish(agent, closed=False)
    world.run(8.0)
    job = queued(worker, "first")
    assert job["phase"] == "queued"
