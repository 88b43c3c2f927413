"""Replies to clients stay true when broker, agents or workers are away at the worst moment."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from prouter.broker.base.settings import Bounds
from prouter.config import RouterConfig
from prouter.errors import AgentUnavailable, NotFound
from prouter.jobs import State
from prouter.web.router_client import RouterClient
from tests.support.broker_world import Agent, Worker, World, restarted

BY_UID = {"type": "uid", "uid": "agent-1"}


def back(agent: Agent, world: World) -> Agent:
    """The same agent, linked to the next broker."""
    again = agent.again(2)
    again.world = world
    world.join(again)
    return again


def create(worker: Worker, key: str = "key-1") -> dict[str, str]:
    job = worker.ask("jobs.create", name="job", agent=BY_UID, key=key)["job"]
    return {"connection": job["path"].split("/")[2], "job": job["uid"]}


def test_a_removal_is_answered_once_it_is_written_down() -> None:
    world = World()
    worker, _ = world.worker(), world.agent()
    at = create(worker)
    world.recorder.held = deque()
    call = worker.call("jobs.remove", **at)
    world.recorder.held.popleft()(world.now)
    world.settle()
    assert world.broker.ledger.find(**at).removed
    while world.recorder.held:  # what the creation left to write may come first
        assert call not in worker.results
        world.recorder.held.popleft()(world.now)
        world.settle()
    assert call in worker.results


@pytest.mark.parametrize("state", [State.RUNNING, State.FINISHED])
def test_a_removal_that_the_broker_did_not_live_to_write_down_is_known_from_the_agent(state: State) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    at = create(worker)
    agent.change(at["job"], state=state)
    agent.silent = True
    worker.call("jobs.remove", "call-1", **at)
    agent.jobs.clear()
    world = restarted(world)
    worker = world.worker()
    if state is State.RUNNING:
        wait = worker.call("jobs.wait", until=None, **at)
    agent = back(agent, world)
    with pytest.raises(NotFound):
        worker.ask("jobs.info", **at)
    assert worker.ask("jobs.remove", **{"call_id": "call-1", **at})["job"]["state"] == state.value
    if state is State.RUNNING:
        assert worker.results[wait]["job"]["reason"] == "removed"


def test_nobody_is_told_that_a_job_runs_whose_removal_was_the_end_of_a_wait() -> None:
    world = World(bounds=Bounds(iteration=8))
    worker, agent = world.worker(), world.agent()
    waits = []
    for number in range(12):
        world.run(0.01)
        at = create(worker, f"key-{number}")
        agent.change(at["job"], state=State.RUNNING)
        world.run(0.01)
        waits.append(worker.call("jobs.wait", until=None, **at))
        agent.silent = True
        worker.call("jobs.remove", **at)
        agent.silent = False
        world.run(0.01)
    link = world.broker.links.get(agent.connection)
    assert link is not None
    world.broker.links.drop(link, "its process ended", world.now)
    world.run(0.1)
    assert [worker.results[wait]["job"]["state"] for wait in waits] == ["FINISHED"] * 12


def test_a_job_whose_creation_failed_is_removed_also_by_the_next_broker() -> None:
    world = World(hold=1.0)
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    uid = agent.asked_for[-1][1]["uid"]
    world.recorder.held = deque()
    link = world.broker.links.get(agent.connection)
    assert link is not None
    world.broker.links.drop(link, "away for too long", world.now)
    world.settle()
    assert call not in worker.results
    while world.recorder.held:
        world.recorder.held.popleft()(world.now)
    world.settle()
    assert isinstance(worker.results[call], AgentUnavailable)
    world = restarted(world)
    worker = world.worker()
    agent.answer("late", "job.create", {"uid": uid, "connection": agent.connection, "name": "job"})
    agent = back(agent, world)
    assert agent.asked_for[-1] == ("job.remove", {"uid": uid, "unwanted_by": "router-1"})
    assert not agent.jobs
    assert world.broker.ledger.table.get(uid) is None


def test_a_repeat_waits_like_the_first_create_until_the_job_is_written_down() -> None:
    world = World()
    worker, _ = world.worker(), world.agent()
    at = create(worker)
    world.recorder.held = deque()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert call not in worker.results
    world.recorder.held.popleft()(world.now)
    world.settle()
    assert worker.results[call]["job"]["uid"] == at["job"]


def test_a_repeat_that_fails_because_the_agent_is_gone_gives_the_job_up() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    uid = agent.asked_for[-1][1]["uid"]
    world = restarted(world)
    worker = world.worker()
    link = world.broker.links.get(agent.connection)
    assert link is not None
    world.broker.links.drop(link, "not back", world.now)
    with pytest.raises(AgentUnavailable):
        create(worker)
    assert world.broker.creations.keys.unwanted(uid)
    assert world.broker.creations.pending == 0
    back(agent, world)
    world._uids = 10
    assert create(worker)["job"] != uid


def test_waits_that_a_worker_does_not_know_when_it_is_back_are_forgotten() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    at = create(worker)
    agent.change(at["job"], state=State.RUNNING)
    kept, left = (worker.call("jobs.wait", until=None, **at) for _ in range(2))
    assert len(world.broker.waits) == 2
    worker.notify("waits", ids=[kept])
    assert len(world.broker.waits) == world.broker.service.running == 1
    agent.change(at["job"], state=State.FINISHED)
    assert kept in worker.results
    assert left not in worker.results


def test_a_list_of_waits_that_is_none_is_malformed() -> None:
    world = World()
    worker = world.worker()
    worker.notify("waits", ids="all")
    assert world.env.counts["malformed"] == 1


def test_workers_are_told_all_links_once_agents_had_time_to_come_back() -> None:
    world = World(resume_timeout=5.0)
    worker, agent = world.worker(), world.agent()
    world.run(4.9)
    assert not worker.of("links.complete")
    assert not world.worker("worker-2").of("links")[0]["complete"]
    world.run(0.3)
    assert worker.of("links.complete")
    (told,) = world.worker("worker-3").of("links")
    assert [link["connection"] for link in told["links"]] == [agent.connection]
    assert told["last"]
    assert told["complete"]


def test_a_worker_forgets_agents_that_went_while_it_could_not_be_told() -> None:
    client = RouterClient(RouterConfig(), "ipc:///nowhere")
    peer = client._peer
    link = {"connection": "there", "up": True}

    def tell(*parts: list[dict[str, Any]], complete: bool) -> None:
        client.on_ready(peer, {})
        for number, part in enumerate(parts, 1):
            client.on_event(peer, "links", {"links": part, "last": number == len(parts), "complete": complete})

    tell([link], [{"connection": "gone", "up": True}], complete=False)
    client.open_stream("gone", {"kind": "echo"})
    tell([link], complete=False)
    assert set(peer.muxes) == {b"there", b"gone"}
    client.on_event(peer, "links.complete", {})
    assert set(peer.muxes) == {b"there"}
    tell([], complete=True)
    assert not peer.muxes
