"""Which agent a job goes to: requirements, resources, spread and pack, and agents that refuse."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.errors import Limit, LimitReached, NotFound
from prouter.jobs import State
from tests.support.broker_world import Agent, Worker, World, job_on

ANY = {"type": "any"}


def with_agents(*capacities: dict[str, Any], **hello: Any) -> tuple[World, Worker, list[Agent]]:
    """A world with one agent for each set of resources, none of which has any load."""
    world = World()
    worker = world.worker()
    agents = []
    for number, resources in enumerate(capacities):
        capacity = {"max": None, "resources": resources}
        agent = world.agent(f"agent-{number}", f"{number:032x}", capacity=capacity, **hello)
        agents.append(agent)
    return world, worker, agents


def place(worker: Worker, key: str, **selector: Any) -> str:
    """Create a job; return the agent's uid."""
    uid: str = job_on(worker, {**ANY, **selector}, key)["agent"]["uid"]
    return uid


def test_a_job_takes_resources_until_it_has_ended() -> None:
    _, worker, (agent,) = with_agents({"gpus": 2})
    first = job_on(worker, {**ANY, "resources": {"gpus": 2}}, "a")
    assert first["resources"] == {"gpus": 2}
    with pytest.raises(LimitReached, match="no agent has gpus 1 left") as refusal:
        place(worker, "b", resources={"gpus": 1})
    assert refusal.value.limit == Limit("jobs.resources.gpus", 2)
    agent.change(first["uid"], state=State.RUNNING)
    agent.change(first["uid"], state=State.FINISHED)
    assert place(worker, "c", resources={"gpus": 1}) == "agent-0"


def test_a_job_that_is_too_large_for_every_agent_is_told_so() -> None:
    _, worker, _ = with_agents({"gpus": 2}, {"gpus": 4})
    assert place(worker, "a", resources={"gpus": 3}) == "agent-1"
    with pytest.raises(NotFound, match=r"no connected agent has gpus 5 \(jobs.resources\)"):
        place(worker, "b", resources={"gpus": 5})
    with pytest.raises(NotFound, match="has matlab 1"):
        place(worker, "c", resources={"matlab": 1})


def test_what_other_routers_jobs_take_counts() -> None:
    _, worker, (agent,) = with_agents({"gpus": 2})
    agent.notify("load", load=0.0, running=1, draining=False, used={"gpus": 2})
    with pytest.raises(LimitReached):
        place(worker, "a", resources={"gpus": 1})
    agent.notify("load", load=0.0, running=1, draining=False, used={})
    assert place(worker, "b", resources={"gpus": 1}) == "agent-0"


def test_an_agent_that_refuses_for_want_of_space_sends_the_job_to_another() -> None:
    _, worker, (one, two) = with_agents({"gpus": 2}, {"gpus": 2})
    one.fails["job.create"] = LimitReached("another router was faster")
    job = job_on(worker, {**ANY, "resources": {"gpus": 1}}, "a")
    assert job["agent"]["uid"] == "agent-1"
    assert [op for op, _ in one.asked_for].count("job.create") == 1
    assert list(two.jobs) == [job["uid"]]
    two.fails = dict(one.fails)
    with pytest.raises(LimitReached, match="another router was faster"):
        place(worker, "b", resources={"gpus": 1})
    one.fails.clear()
    assert place(worker, "c", resources={"gpus": 2}) == "agent-0"


def test_a_job_takes_what_its_template_says_where_the_request_does_not() -> None:
    told = {"templates": ["lab"], "template_resources": {"lab": {"gpus": 2}}}
    world, worker, (agent,) = with_agents({"gpus": 4}, **told)

    def by_template(key: str, selector: dict[str, Any], **more: Any) -> dict[str, Any]:
        call = worker.call("jobs.create", name=key, agent=selector, key=key, template="lab", **more)
        world.settle()
        answer = worker.results[call]
        if isinstance(answer, Exception):
            raise answer
        job: dict[str, Any] = answer["job"]
        return job

    first = by_template("a", ANY)
    with pytest.raises(LimitReached, match="no agent has gpus 3 left"):
        by_template("b", {**ANY, "resources": {"gpus": 3}})
    by_template("c", ANY)
    with pytest.raises(LimitReached, match="no agent has gpus 2 left"):
        by_template("d", {"type": "uid", "uid": "agent-0"})
    waits = by_template("e", ANY, queue={"timeout": 60})
    assert waits["phase"] == "queued"
    agent.change(first["uid"], state=State.FINISHED)
    agent.notify("load", load=0.0, running=1, draining=False, used={"gpus": 2})
    world.run(1.0)
    assert waits["uid"] in agent.jobs
    (asked,) = [args for op, args in agent.asked_for if op == "job.create" and args["uid"] == waits["uid"]]
    assert asked["resources"] == {"gpus": 2}


def test_requirements_choose_by_operators() -> None:
    world = World()
    worker = world.worker()
    for number, gpus in enumerate((1, 2, 4)):
        world.agent(f"agent-{number}", f"{number:032x}", properties={"gpus": gpus, "zone": "ab"[number % 2]})
    assert place(worker, "a", require={"gpus": {">=": 3}}) == "agent-2"
    assert place(worker, "b", require={"gpus": {">=": 2}, "zone": {"in": ["b", "c"]}}) == "agent-1"
    with pytest.raises(NotFound, match="no connected agent fulfils gpus >= 8; connected agents: agent-0"):
        place(worker, "c", require={"gpus": {">=": 8}})


def test_spread_takes_the_emptiest_and_pack_the_fullest_agent() -> None:
    _, worker, _ = with_agents({"cpus": 4}, {"cpus": 4}, {"cpus": 4})
    wanted = {"resources": {"cpus": 1}}
    spread = [place(worker, f"s{i}", strategy="spread", **wanted) for i in range(3)]
    assert sorted(spread) == ["agent-0", "agent-1", "agent-2"]
    packed = [place(worker, f"p{i}", strategy="pack", **wanted) for i in range(6)]
    assert packed == ["agent-0"] * 3 + ["agent-1"] * 3


def test_a_failed_creation_gives_resources_back() -> None:
    _, worker, (agent,) = with_agents({"gpus": 1})
    agent.fails["job.create"] = NotFound("no")
    with pytest.raises(NotFound, match="no"):
        place(worker, "a", resources={"gpus": 1})
    agent.fails.clear()
    assert place(worker, "b", resources={"gpus": 1}) == "agent-0"
