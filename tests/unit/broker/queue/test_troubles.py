"""Queued jobs whose agents fail, return smaller or are started by others, and clocks that are set."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.errors import AgentUnavailable, Conflict, NoSpace, PRouterError
from prouter.jobs import JobRecord, State
from tests.support.broker_world import Agent, World
from tests.support.queued_jobs import ANY, ONE, end, info, queued, start, starts


def test_a_start_through_another_router_leaves_the_job_running() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", **start("first", "true"))
    agent = world.agent()
    agent.fails["job.start"] = AgentUnavailable("not yet")
    world.run(1.0)
    agent.change(job["uid"], state=State.RUNNING)
    agent.fails["job.start"] = Conflict("it was started already", job=job["uid"], state="RUNNING")
    asked = len(starts(agent))
    world.run(5.0)
    assert len(starts(agent)) > asked
    assert info(worker, job)["state"] == "RUNNING"
    assert "job.remove" not in [op for op, _ in agent.asked_for]


def test_every_router_knows_that_a_queued_job_will_be_started() -> None:
    first, second = World(), World()
    workers = [world.worker() for world in (first, second)]
    jobs = [queued(workers[0], "starts", **start("starts", "true")), queued(workers[0], "rests")]
    agent = first.agent()
    agent.fails["job.start"] = AgentUnavailable("not yet")
    first.run(1.0)
    there = second.agent()
    there.jobs = dict(agent.jobs)
    there.announce()
    second.run(1.0)
    told = [info(workers[1], job) for job in jobs]
    assert [(one["state"], one["phase"]) for one in told] == [("NEW", "starting"), ("NEW", None)]
    waits = [workers[1].call("jobs.wait", until=None, **job["at"]) for job in jobs]
    second.run(1.0)
    assert [wait in workers[1].results for wait in waits] == [False, True]
    there.change(jobs[0]["uid"], state=State.FINISHED, exit_code=0)
    second.run(1.0)
    assert workers[1].results[waits[0]]["job"]["state"] == "FINISHED"


@pytest.mark.parametrize("error", [AgentUnavailable("no shared directory"), NoSpace("the disk is full")])
def test_an_agent_that_cannot_create_a_job_for_now_is_asked_again_not_in_a_loop(error: PRouterError) -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", timeout=600)
    agent = world.agent()
    agent.fails["job.create"] = error
    world.run(16.0)
    assert len([op for op, _ in agent.asked_for if op == "job.create"]) == 5, "after 0, 1, 3, 7 and 15 seconds"
    told = " ".join(finding["text"] for finding in worker.ask("jobs.explain", **job["at"])["findings"])
    assert error.detail in told
    assert "asked again in" in told
    other = queued(worker, "second", timeout=600)
    agent.fails.clear()
    world.run(2.0)
    assert info(worker, other)["agent"]["uid"] == "agent-1", "it serves others meanwhile"
    world.run(16.0)
    assert info(worker, job)["agent"]["uid"] == "agent-1"


def test_a_job_whose_time_was_up_while_an_agent_was_asked_ends_when_that_agent_is_gone() -> None:
    world = World(resume_timeout=5.0)
    worker = world.worker()
    agent = world.agent(capacity=ONE)
    first = queued(worker, "first")
    second = queued(worker, "second", timeout=5)
    wait = worker.call("jobs.wait", until=None, **second["at"])
    agent.silent = True
    end(agent, first, world)
    world.run(6.0)
    world.vanish(agent)
    world.run(60.0)
    assert worker.results[wait]["job"]["reason"] == "queue_timeout"


class Half(Agent):
    """An agent that tells of a job, and then that it could not create it."""

    def answer(self, call_id: str, op: str, args: dict[str, Any]) -> None:
        if op == "job.create":
            told = {name: args[name] for name in ("client", "will_start")}
            self.jobs[args["uid"]] = record = JobRecord(args["uid"], args["connection"], args["name"], **told)
            self.notify("job", record=record.to_wire())
            self.say(self.responder.reply(call_id, error=AgentUnavailable("it broke off")))
        else:
            super().answer(call_id, op, args)


def test_a_job_of_which_its_agent_has_told_is_started_whatever_the_call_that_created_it_got() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", **start("first", "true"))
    world.join(Half(world, "agent-1", "a" * 32))
    world.run(2.0)
    assert info(worker, job)["phase"] == "ready"


def test_a_job_that_was_lost_before_it_was_started_is_removed_when_its_agent_returns() -> None:
    world = World(resume_timeout=5.0)
    worker = world.worker()
    agent = world.agent(capacity=ONE)
    first, second = (queued(worker, name, **start(name, "true")) for name in ("first", "second"))
    agent.silent = True
    end(agent, first, world)
    uid, place = second["uid"], second["path"].split("/")[2]
    agent.jobs[uid] = JobRecord(uid, agent.connection, "second", client=place, will_start=True)
    agent.notify("job", record=agent.jobs[uid].to_wire())
    world.vanish(agent)
    world.run(8.0)
    back = agent.again(path=2)
    world.join(back)
    world.run(1.0)
    assert (info(worker, second)["reason"], list(back.jobs)) == ("agent_lost", [first["uid"]])


def test_a_start_that_fails_at_the_agent_is_repeated_and_in_the_end_given_up() -> None:
    world = World()
    worker = world.worker()
    first, second = (queued(worker, name, **start(name, "true")) for name in ("first", "second"))
    agent = world.agent(capacity=ONE)
    agent.fails["job.start"] = PRouterError("a bug")
    world.run(2.0)
    assert info(worker, first)["phase"] == "starting"
    agent.fails.clear()
    world.run(10.0)
    assert info(worker, first)["phase"] == "ready"
    agent.fails["job.start"] = PRouterError("a bug")
    end(agent, first, world)
    world.run(300.0)
    told = info(worker, second)
    assert (told["reason"], "a bug" in told["error"]) == ("start_failed", True)
    assert starts(agent).count(second["uid"]) == 10


def test_an_agent_that_came_back_smaller_is_not_kept_free_for_what_it_cannot_take() -> None:
    world = World(queue_reserve_after=0.0)
    worker = world.worker()
    agent = world.agent(capacity={"max": None, "resources": {"cpus": 2}})
    one = {**ANY, "resources": {"cpus": 1}}
    small = [queued(worker, f"s{i}", agent=one) for i in range(2)]
    queued(worker, "large", 900.0, agent={**ANY, "resources": {"cpus": 2}})
    more = [queued(worker, f"m{i}", 900.0, agent=one) for i in range(3)]
    for job in small:
        end(agent, job, world)
    end(agent, more[0], world)
    assert info(worker, more[2])["phase"] == "queued"
    world.vanish(agent)
    back = agent.again(path=2)
    back.hello["capacity"] = {"max": None, "resources": {"cpus": 1}}
    world.join(back)
    end(back, more[1], world)
    world.run(1.0)
    assert info(worker, more[2])["phase"] is None


def test_a_clock_that_is_set_ends_no_queued_job() -> None:
    world = World()
    worker = world.worker()
    job = queued(worker, "first", timeout=3600)
    world.set_by = 100_000.0
    world.run(10.0)
    assert info(worker, job)["phase"] == "queued"
    world.run(3600.0, step=60.0)
    assert info(worker, job)["reason"] == "queue_timeout"
