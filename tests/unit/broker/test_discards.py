"""Jobs that agents have and the router does not want, and slots of jobs that are being created."""

from __future__ import annotations

from collections import deque
from typing import Any

from prouter.errors import AgentUnavailable, LimitReached, PRouterError
from prouter.jobs import JobRecord
from tests.support.broker_world import BY_UID, Agent, Worker, World, listed


def given_up(world: World, worker: Worker, agent: Agent) -> str:
    """Have a creation fail although its agent may have created the job; return the job's uid."""
    agent.silent = True
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="given up", digest="d")
    world.vanish(agent, closed=False)
    world.run(12)
    assert isinstance(worker.results[call], AgentUnavailable)
    return next(str(args["uid"]) for op, args in agent.asked_for if op == "job.create")


def removals(agent: Agent) -> int:
    return sum(op == "job.remove" for op, _ in agent.asked_for)


def test_an_agent_is_asked_until_it_has_removed_a_job_that_nobody_wants() -> None:
    world = World(resume_timeout=5.0)
    worker, agent = world.worker(), world.agent()
    uid = given_up(world, worker, agent)
    back = agent.again(2)
    back.jobs[uid] = JobRecord(uid, agent.connection, "job")
    back.fails["job.remove"] = PRouterError("the disk does not answer")
    world.join(back)
    back.change(uid, name="told again")
    world.run(20.0)
    assert removals(back) == 5, "at 0, 1, 3, 7 and 15 seconds, however often it tells of the job"
    back.fails.clear()
    world.run(20.0)
    assert not back.jobs
    assert removals(back) == 6


def test_an_agent_that_is_gone_is_asked_no_more() -> None:
    world = World(resume_timeout=5.0)
    worker, agent = world.worker(), world.agent()
    uid = given_up(world, worker, agent)
    back = agent.again(2)
    back.jobs[uid] = JobRecord(uid, agent.connection, "job")
    back.fails["job.remove"] = PRouterError("the disk does not answer")
    world.join(back)
    world.vanish(back)
    world.run(60.0)
    after = removals(back)
    later = agent.again(3)
    world.join(later)
    world.run(1.0)
    assert (after, removals(later), later.jobs) == (1, 1, {})


def test_a_job_takes_one_slot_while_its_creation_is_being_stored() -> None:
    world = World()
    worker = world.worker()
    world.agent(capacity={"max": 2})
    world.recorder.held = held = deque[Any]()
    first = worker.call("jobs.create", name="job", agent=BY_UID, key="first")
    held.popleft()(world.now)
    world.settle()
    assert len(listed(worker)) == 1
    assert first not in worker.results, "it is being stored"
    others = [worker.call("jobs.create", name="job", agent=BY_UID, key=f"key-{number}") for number in range(2)]
    assert others[0] not in worker.results
    assert isinstance(worker.results[others[1]], LimitReached)


class Keeper(Agent):
    """A witness that has a job for every key, which it does not remove."""

    uid_of_old = ""

    def answer(self, call_id: str, op: str, args: dict[str, Any]) -> None:
        if op == "key.claim":
            told = {"job": self.uid_of_old, "connection": self.connection, "digest": args["digest"], "age": 0.0}
            self.say(self.responder.reply(call_id, told))
        else:
            super().answer(call_id, op, args)


def test_a_key_whose_job_stays_on_an_agent_that_should_remove_it_is_claimed_for_so_long_as_a_request_may_wait() -> None:
    world = World(hold=5.0)
    worker = world.worker()
    agent = Keeper(world, "agent-1", "a" * 32, routers=2)
    world.join(agent)
    agent.uid_of_old = "f" * 32
    world.broker.creations.keys.give_up("some key", agent.uid_of_old)
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1", digest="d")
    assert call not in worker.results
    world.run(6.0)
    claims = sum(op == "key.claim" for op, _ in agent.asked_for)
    error = worker.results[call]
    assert isinstance(error, AgentUnavailable)
    assert "still has job" in error.detail
    assert claims <= 5.0 / 0.05 + 2
