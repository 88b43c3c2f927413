"""A router that has not heard yet what happened at another one asks the agent before it says no."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prouter.errors import AgentUnavailable, NotFound
from prouter.jobs import State
from tests.support.broker_world import World
from tests.support.shared_agents import End, Routers

FIRST = {"type": "uid", "uid": "agent-1"}


@pytest.fixture
def routers() -> Routers:
    return Routers()


def created(routers: Routers, *, told: bool) -> dict[str, str]:
    """Create a job at the first router; the second one is told of it or not. Return the job's address."""
    routers.create(0, "key", FIRST)
    for _ in range(6):
        for agent in range(3):
            end = routers.end(0, agent)
            assert end is not None
            end.carry_out()
            while end.send():
                pass
    routers.collect()
    uid = routers.answers["key"][0]
    if told:
        routers.settle()
    return {"connection": routers.agents[0].jobs[uid].connection, "job": uid}


def reply(routers: Routers, call: str) -> Any:
    return routers.workers[1].results.get(call)


def test_a_job_that_another_router_has_just_created_is_found(routers: Routers) -> None:
    at = created(routers, told=False)
    calls = [routers.workers[1].call(op, **at) for op in ("jobs.info", "jobs.route")]
    assert not any(reply(routers, call) for call in calls)
    assert len(routers.agents[0].ends[1].incoming) == 1, "both wait for one reply of the agent, or for the next"
    routers.settle()
    assert reply(routers, calls[0])["job"]["uid"] == at["job"]
    assert reply(routers, calls[1])["record"]["uid"] == at["job"]


def test_a_job_that_nobody_knows_is_not_found_once_its_agent_has_said_so(routers: Routers) -> None:
    at = created(routers, told=True)
    call = routers.workers[1].call("jobs.info", connection=at["connection"], job="f" * 32)
    assert reply(routers, call) is None
    routers.settle()
    assert isinstance(reply(routers, call), NotFound)


def test_a_job_that_another_router_has_queued_is_not_denied(routers: Routers) -> None:
    for agent in routers.agents:
        agent.full = True
    call = routers.workers[0].call("jobs.create", name="n", agent={"type": "any", "resources": {"gpus": 1}}, key="k",
                                   queue={"timeout": 60})  # fmt: skip
    routers.settle()
    job = routers.workers[0].results[call]["job"]
    at = {"connection": job["path"].split("/")[2], "job": job["uid"]}
    for op in ("jobs.info", "jobs.route", "jobs.wait", "jobs.explain", "jobs.remove"):
        told = reply(routers, routers.workers[1].call(op, **at))
        assert isinstance(told, AgentUnavailable), op
        assert told.code == "agent_elsewhere"
    call = routers.workers[0].call("jobs.info", **{**at, "job": "f" * 32})
    routers.settle()
    assert isinstance(routers.workers[0].results[call], NotFound)


def test_a_router_without_others_denies_a_job_of_an_unknown_queue() -> None:
    world = World()
    worker, _ = world.worker(), world.agent()
    call = worker.call("jobs.info", connection="queue-" + "a" * 26, job="f" * 32)
    assert isinstance(worker.results[call], NotFound)


def test_a_job_is_not_denied_while_its_agent_does_not_answer(routers: Routers) -> None:
    at = created(routers, told=False)
    calls = [routers.workers[1].call(op, **at) for op in ("jobs.info", "jobs.wait", "jobs.route")]
    routers.worlds[1].run(5)
    assert [reply(routers, call) for call in calls] == [None, None, None]
    routers.settle()
    assert reply(routers, calls[0])["job"]["uid"] == at["job"]


def test_an_agent_that_never_answers_makes_its_jobs_unavailable(routers: Routers) -> None:
    at = created(routers, told=True)
    wanted = {"connection": at["connection"], "job": "f" * 32}
    calls = [routers.workers[1].call(op, **wanted) for op in ("jobs.info", "jobs.wait")]
    routers.worlds[1].run(9)
    assert [reply(routers, call) for call in calls] == [None, None]
    routers.worlds[1].run(4)
    assert [type(reply(routers, call)) for call in calls] == [AgentUnavailable, AgentUnavailable]


@pytest.mark.parametrize("away", [False, True])
def test_a_job_that_may_have_been_started_is_not_said_to_wait_for_a_start(routers: Routers, away: bool) -> None:
    at = created(routers, told=True)
    if away:
        routers.cut(1, 0)
    waits, info = routers.workers[1].call("jobs.wait", until=None, **at), routers.workers[1].call("jobs.info", **at)
    routers.worlds[1].run(5)
    assert reply(routers, waits) is None
    assert reply(routers, info)["job"]["state"] == "NEW"
    routers.worlds[1].run(8)
    assert isinstance(reply(routers, waits), AgentUnavailable)


def test_a_wait_for_a_job_that_another_router_has_started_waits(routers: Routers) -> None:
    at = created(routers, told=True)
    agent = routers.agents[0]
    agent.jobs[at["job"]] = record = replace(agent.jobs[at["job"]], state=State.RUNNING, revision=1)
    agent._tell("job", {"record": record.to_wire()})
    call = routers.workers[1].call("jobs.wait", until=None, **at)
    routers.settle()
    assert reply(routers, call) is None
    assert routers.worlds[1].broker.service.running == 1


def test_a_restarted_router_waits_for_the_agent_of_a_job_that_it_does_not_know(routers: Routers) -> None:
    routers.kill(1)
    at = created(routers, told=False)
    call = routers.workers[1].call("jobs.info", **at)
    routers.worlds[1].run(3)
    assert reply(routers, call) is None
    routers.link(1, 0)
    routers.settle()
    assert reply(routers, call)["job"]["uid"] == at["job"]


def test_a_job_whose_agent_stays_away_is_not_denied(routers: Routers) -> None:
    routers.kill(1)
    at = created(routers, told=False)
    call = routers.workers[1].call("jobs.info", **at)
    routers.worlds[1].run(10.2)
    assert isinstance(reply(routers, call), AgentUnavailable)


def test_an_agent_that_another_router_met_first_has_two_seconds_to_link(routers: Routers) -> None:
    at = created(routers, told=True)
    calls = [routers.workers[1].call("jobs.info", connection="c" * 32, job=job) for job in ("e" * 32, at["job"])]
    routers.worlds[1].run(1.8)
    assert reply(routers, calls[0]) is None
    routers.worlds[1].run(0.4)
    assert isinstance(reply(routers, calls[0]), NotFound)
    assert isinstance(reply(routers, calls[1]), NotFound)


def test_a_call_that_waits_for_news_can_be_given_up(routers: Routers) -> None:
    created(routers, told=True)
    world, worker = routers.worlds[1], routers.workers[1]
    call = worker.call("jobs.wait", connection="c" * 32, job="e" * 32, until=None)
    assert world.broker.service.running == 1
    worker.notify("wait.cancel", id=call)
    assert world.broker.service.running == 0
    worker.call("jobs.wait", connection="c" * 32, job="e" * 32, until=None)
    world.broker.worker_died(worker.uid, world.now)
    assert world.broker.service.running == 0
    world.run(3)
    assert world.broker.service.running == 0


def test_sync_with_an_agent_includes_what_it_had_sent(routers: Routers) -> None:
    at = created(routers, told=False)
    call = routers.workers[1].call("sync", connection=at["connection"])
    assert reply(routers, call) is None
    routers.settle()
    assert reply(routers, call) == {}
    assert routers.workers[1].of("job")


def test_a_router_that_some_agents_do_not_link_to_denies_no_job(routers: Routers) -> None:
    world = routers.worlds[1]
    end = End(world, routers.agents[0], 99)
    end.hello["partial"] = True
    routers.cut(1, 0)
    world.join(end)
    routers.settle()
    call = routers.workers[1].call("jobs.info", connection="c" * 32, job="e" * 32)
    assert (reply(routers, call).status, reply(routers, call).code) == (503, "agent_elsewhere")


def test_a_job_that_was_lost_may_be_elsewhere_if_its_agent_links_to_some_routers_only(routers: Routers) -> None:
    at = created(routers, told=True)
    world = routers.worlds[1]
    end = End(world, routers.agents[0], 99)
    end.hello["partial"] = True
    routers.cut(1, 0)
    world.join(end)
    routers.settle()
    routers.cut(1, 0)
    world.broker.links.drop(next(link for link in world.broker.links if link.info.partial), "gone", world.now)
    world.settle()
    call = routers.workers[1].call("jobs.info", **at)
    assert reply(routers, call).code == "agent_elsewhere"


def test_an_agent_tells_to_which_routers_it_links(routers: Routers) -> None:
    end = routers.end(1, 0)
    assert end is not None
    told = [{"address": "a:1", "uid": "router-0", "up": True}, {"address": "b:1", "uid": "", "up": False}]
    end.notify("routers", routers=told)
    routers.worlds[1].run(3)
    shown = {link["uid"]: link["routers"] for link in routers.workers[1].connections()}
    assert shown[end.connection] == told
    end.notify("routers", routers=[{"address": "a\n"}])
    end.notify("routers", routers="none")
    assert routers.worlds[1].env.counts["malformed"] == 2
