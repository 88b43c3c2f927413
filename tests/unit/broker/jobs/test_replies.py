"""A job's record reaches the table one way, by events; replies to calls only say which revision it has."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.errors import AgentUnavailable, ProtocolError
from prouter.fabric.calls import Responder
from prouter.jobs import JobRecord, Reason, State
from tests.support.broker_world import BY_UID, Agent, Worker, World, job_on

UID = f"{1:032x}"


class ByRevision(Agent):
    """An agent that tells each record by an event and replies with its revision.

    With `event_first` off, the event follows the reply. With `deaf`, the test sends events itself.
    """

    event_first = True
    deaf = False

    def answer(self, call_id: str, op: str, args: dict[str, Any]) -> None:
        uid = args["uid"]
        if args.get("answer") != "revision":
            self.say(self.responder.reply(call_id, {"record": self.replies_with(op, uid).to_wire()}))
            return
        if op == "job.create":
            self.jobs.setdefault(uid, JobRecord(uid, args["connection"], args["name"], created_at=self.world.wall()))
        elif op == "job.start":
            self.jobs[uid] = self.next(uid, state=State.RUNNING, pid=7)
        if self.event_first and not self.deaf:
            self.tell(uid)
        self.say(self.responder.reply(call_id, {"revision": self.jobs[uid].revision}))
        if not self.event_first and not self.deaf:
            self.tell(uid)

    def replies_with(self, op: str, uid: str) -> JobRecord:
        return self.jobs[uid]

    def next(self, uid: str, **changes: Any) -> JobRecord:
        record = self.jobs[uid]
        return JobRecord.from_wire({**record.to_wire(), "revision": record.revision + 1, **changes})

    def tell(self, uid: str) -> None:
        self.notify("job", record=self.jobs[uid].to_wire())

    def again(self, path: int) -> ByRevision:
        new = ByRevision(self.world, self.uid, self.incarnation, path)
        new.jobs, new.responder = self.jobs, self.responder
        return new


def stand(**settings: Any) -> tuple[World, Worker, ByRevision]:
    world = World(**settings)
    agent = ByRevision(world, "agent-1", "a" * 32)
    worker = world.worker()
    world.join(agent)
    return world, worker, agent


def create(worker: Worker) -> str:
    return worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")


def writes(world: World) -> int:
    """How often the broker stored a job's record."""
    return sum("INTO jobs" in statement for statement, _ in world.recorder.statements)


@pytest.mark.parametrize("event_first", [True, False])
def test_create_and_start_bring_each_record_to_the_table_once(event_first: bool) -> None:
    world, worker, agent = stand()
    agent.event_first = event_first
    job = job_on(worker)
    started = worker.ask("jobs.start", request={}, key="start-1", **job["at"])["job"]
    assert (started["state"], started["pid"]) == ("RUNNING", 7)
    assert writes(world) == len(worker.of("job")) == 2
    assert len(world.broker.replies) == 0


def test_a_reply_that_overtakes_its_event_waits_for_it() -> None:
    world, worker, agent = stand()
    agent.deaf = True
    call = create(worker)
    assert call not in worker.results
    assert len(world.broker.replies) == 1
    agent.tell(UID)
    assert worker.results[call]["job"]["uid"] == UID
    timers = len(world.env.timers)
    world.run(60)
    assert len(world.env.timers) <= timers, "the deadline is not left over"


def test_an_event_that_is_lost_with_its_path_is_made_up_for_by_the_list_on_the_next() -> None:
    world, worker, agent = stand()
    agent.silent = True
    call = create(worker)
    world.vanish(agent)
    agent.jobs[UID] = JobRecord(UID, agent.connection, "job", created_at=1.0)
    again = agent.again(2)
    again.responder = Responder()
    again.deaf = True
    told: list[str] = []
    announce = again.announce
    again.announce = lambda: told.append("later")  # type: ignore[method-assign]
    world.join(again)
    world.run(1)
    assert told
    assert call not in worker.results, "the reply came over the new path, before the list"
    announce()
    assert worker.results[call]["job"]["state"] == "NEW"
    assert writes(world) == 1


def test_a_reply_that_is_lost_is_given_again_on_the_next_path() -> None:
    world, worker, agent = stand()
    say = agent.say
    agent.say = lambda *frames: None if frames[0].type == 17 else say(*frames)  # type: ignore[method-assign]
    call = create(worker)
    assert call not in worker.results
    world.vanish(agent)
    world.join(agent.again(2))
    world.run(1)
    assert worker.results[call]["job"]["uid"] == UID
    assert writes(world) == len(worker.of("job")) == 1
    assert [op for op, _ in agent.asked_for] == ["job.create"]


def test_a_malformed_record_fails_the_reply_that_waits_for_it() -> None:
    world, worker, agent = stand()
    agent.deaf = True
    call = create(worker)
    agent.notify("job", record={**agent.jobs[UID].to_wire(), "pid": "x"})
    assert isinstance(worker.results[call], ProtocolError)
    assert "agent-1" in str(worker.results[call])
    assert world.broker.creations.keys.unwanted(UID)


def test_another_agent_cannot_fail_a_reply() -> None:
    world, worker, agent = stand()
    rogue = world.agent("rogue", "d" * 32)
    agent.deaf = True
    call = create(worker)
    rogue.notify("job", record={**agent.jobs[UID].to_wire(), "pid": "x"})
    rogue.notify("job", record=JobRecord(UID, rogue.connection, "mine", State.FINISHED, 99).to_wire())
    rogue.announce()
    assert call not in worker.results


def test_a_list_without_the_job_fails_the_reply() -> None:
    world, worker, agent = stand()
    agent.silent = True
    call = create(worker)
    world.vanish(agent)
    again = agent.again(2)
    again.responder = Responder()
    again.deaf = True
    again.announce = lambda: None  # type: ignore[method-assign]
    world.join(again)
    world.run(1)
    again.notify("jobs", jobs=[], complete=True)
    assert isinstance(worker.results[call], ProtocolError)


def test_an_agent_that_is_gone_fails_the_reply() -> None:
    world, worker, agent = stand()
    agent.deaf = True
    call = create(worker)
    link = world.broker.links.get(agent.connection)
    assert link is not None
    world.broker.links.drop(link, "its process ended", world.now)
    world.settle()
    assert isinstance(worker.results[call], AgentUnavailable)
    assert len(world.broker.replies) == 0


@pytest.mark.parametrize(("there", "error"), [(True, ProtocolError), (False, AgentUnavailable)])
def test_a_record_that_never_comes_fails_the_reply_in_the_end(there: bool, error: type[Exception]) -> None:
    world, worker, agent = stand(resume_timeout=10.0)
    agent.deaf = True
    call = create(worker)
    if not there:
        world.vanish(agent, closed=False)
    world.run(9)
    assert call not in worker.results
    world.run(2)
    assert isinstance(worker.results[call], error)


def test_a_start_is_answered_with_the_job_as_it_was_then_although_the_table_is_ahead() -> None:
    world, worker, agent = stand()
    job = job_on(worker)
    agent.silent = True
    call = worker.call("jobs.start", request={}, key="start-1", **job["at"])
    world.vanish(agent)
    then = agent.next(UID, state=State.RUNNING, pid=7)
    agent.jobs[UID] = then
    agent.jobs[UID] = agent.next(UID, state=State.FINISHED, pid=None, exit_code=3, reason=Reason.EXITED.value)
    again = agent.again(2)
    again.responder = Responder()
    asked: list[dict[str, Any]] = []

    def answer(call_id: str, op: str, args: dict[str, Any]) -> None:
        asked.append(args)
        by_revision = args.get("answer") == "revision"
        value = {"revision": then.revision} if by_revision else {"record": then.to_wire()}
        again.say(again.responder.reply(call_id, value))

    again.answer = answer  # type: ignore[method-assign]
    world.join(again)
    world.run(1)
    assert (worker.results[call]["job"]["state"], worker.results[call]["job"]["pid"]) == ("RUNNING", 7)
    assert worker.ask("jobs.info", **job["at"])["job"]["exit_code"] == 3
    assert [args.get("answer") for args in asked] == ["revision", None]
    assert asked[0]["request_id"] == asked[1]["request_id"] == "start-1"


def test_a_stale_record_in_a_reply_is_shown_and_changes_nothing() -> None:
    world, worker, agent = stand()
    job = job_on(worker)
    then = agent.next(UID, state=State.RUNNING, pid=7)
    agent.jobs[UID] = then
    agent.jobs[UID] = agent.next(UID, state=State.FINISHED, pid=None, exit_code=3, reason=Reason.EXITED.value)
    agent.tell(UID)
    agent.answer = lambda call_id, op, args: agent.say(  # type: ignore[method-assign]
        agent.responder.reply(call_id, {"record": then.to_wire()})
    )
    started = worker.ask("jobs.start", request={}, key="start-1", **job["at"])["job"]
    assert started["state"] == "RUNNING"
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "FINISHED"
    assert writes(world) == 2


@pytest.mark.parametrize("revision", [None, -1, "1", True, 2**63])
def test_a_revision_that_makes_no_sense_fails_its_call(revision: Any) -> None:
    world, worker, agent = stand()
    agent.answer = lambda call_id, op, args: agent.say(  # type: ignore[method-assign]
        agent.responder.reply(call_id, {"revision": revision})
    )
    call = create(worker)
    assert isinstance(worker.results[call], ProtocolError)
    assert world.env.counts["malformed"] == 1
