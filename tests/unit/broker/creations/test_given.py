"""A job that its agent had ready is given instead of the one that the router has chosen, and counts as that one."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.errors import LimitReached, NotFound
from prouter.jobs import JobRecord, State
from tests.support.broker_world import Agent, World
from tests.support.shared_agents import ANY, DIGEST, TEMPLATE, Routers


def told(routers: Routers, router: int = 0) -> list[dict[str, Any]]:
    """The jobs that a router has, as it answers for each of them."""
    jobs = [(agent.jobs[uid].connection, uid) for agent in routers.agents for uid in agent.jobs]
    return [routers.workers[router].ask("jobs.info", connection=at, job=uid)["job"] for at, uid in jobs]


def test_a_repeated_request_gives_the_job_that_was_ready() -> None:
    routers = Routers(routers=1, agents=1, ready=2)
    for _ in range(2):
        routers.create(0, "key")
        routers.settle()
    (job,) = told(routers)
    assert routers.answers["key"] == [job["uid"]] * 2
    assert (job["state"], job["template"]) == ("RUNNING", TEMPLATE)
    assert not {"instead_of", "key", "digest"} & job.keys()
    routers.kill(0)
    routers.link(0, 0)
    routers.create(0, "key")
    routers.settle()
    assert routers.answers["key"] == [job["uid"]] * 3
    assert len(routers.agents[0].ready) == 1


def test_a_broker_that_dies_before_it_hears_of_the_job_finds_it_again() -> None:
    routers = Routers(routers=1, agents=1, ready=2)
    routers.create(0, "key", digest="")
    routers.worlds[0].run(0.1)
    end = routers.end(0, 0)
    assert end is not None
    assert end.carry_out()
    routers.kill(0)
    routers.link(0, 0)
    routers.create(0, "key", digest="")
    routers.settle()
    assert routers.answers["key"] == routers.jobs()
    assert len(routers.jobs()) == len(routers.agents[0].ready) == 1


def test_a_job_whose_creation_was_given_up_is_removed_though_it_was_ready() -> None:
    routers = Routers(routers=1, agents=1, ready=1)
    routers.create(0, "key", digest="")
    routers.worlds[0].run(0.1)
    end = routers.end(0, 0)
    assert end is not None
    assert end.carry_out()
    routers.cut(0, 0)
    routers.worlds[0].run(120)
    routers.collect()
    assert routers.errors["key"]
    assert routers.jobs()
    routers.link(0, 0)
    routers.settle()
    assert routers.jobs() == []


class Giving(Agent):
    """An agent that has a job ready, and gives it without naming an owner."""

    def answer(self, call_id: str, op: str, args: dict[str, Any]) -> None:
        assert op == "job.create"
        uid = f"ready-{len(self.jobs)}"
        self.jobs[uid] = JobRecord(uid, args["connection"], "n", State.RUNNING, instead_of=args["uid"], created_at=1.0)
        self.notify("job", record=self.jobs[uid].to_wire())
        self.say(self.responder.reply(call_id, {"revision": 0, "uid": uid}))


def test_the_job_counts_once_and_for_its_owner() -> None:
    world = World(jobs_per_owner=2)
    worker = world.worker()
    world.join(Giving(world, "agent-1", "a" * 32, templates=[TEMPLATE]))
    asked = {"name": "n", "agent": ANY, "owner": "ada", "template": TEMPLATE}
    assert [worker.ask("jobs.create", key=key, **asked)["job"]["owner"] for key in ("a", "b", "b")] == ["ada"] * 3
    with pytest.raises(LimitReached):
        worker.ask("jobs.create", key="c", **asked)
    assert worker.ask("jobs.create", key="c", **{**asked, "owner": "eve"})["job"]["uid"] == "ready-2"


def test_without_an_agent_that_has_the_template_nothing_is_created() -> None:
    world = World()
    worker, _ = world.worker(), world.agent(templates=["lab"])
    with pytest.raises(NotFound, match="templates there: lab") as caught:
        worker.ask("jobs.create", name="n", agent=ANY, key="k", digest=DIGEST, template=TEMPLATE)
    assert caught.value.code == "no_template"


def test_an_agent_with_a_ready_job_comes_first_until_it_is_taken() -> None:
    world = World()
    worker = world.worker()
    for number in range(1, 4):
        agent = world.agent(f"agent-{number}", f"{number:032x}", templates=[TEMPLATE])
        figures = {TEMPLATE: {"size": 1, "ready": int(number == 2), "failures": 0}}
        agent.notify("pool", templates=figures)
        agent.notify("load", load=float(number), running=0)
    placed = [
        worker.ask("jobs.create", name="n", agent=ANY, key=f"k{n}", template=TEMPLATE)["job"]["agent"]["uid"]
        for n in range(2)
    ]
    assert placed == ["agent-2", "agent-1"]
    stats = world.broker.stats(world.now)
    assert [stats[f"pool.{name}"] for name in ("size", "ready", "failures")] == [3, 0, 0]
    assert (stats.get("total.jobs_ready", 0), stats["total.jobs_not_ready"]) == (0, 2)
    assert {one["peer"]["auth"]["uid"]: one["pool"] for one in worker.connections()}["agent-3"] == {
        TEMPLATE: {"size": 1, "ready": 0, "failures": 0}
    }


@pytest.mark.parametrize(
    "figures",
    [None, [], {"a b": {}}, {"a": 1}, {"a": {"size": 1}}, {"a": {"size": 1, "ready": True, "failures": 0}}],
)
def test_malformed_figures_of_a_pool_are_refused(figures: Any) -> None:
    world = World()
    agent = world.agent()
    agent.notify("pool", templates=figures)
    assert world.broker.env.counts["malformed"] == 1
