"""Agents that listen and are dialled: the states of a dial, and agents that restart meanwhile."""

from __future__ import annotations

from itertools import product

import pytest

from prouter.broker.links.dials import NEXT, DialState, _Dial
from prouter.broker.links.hello import connection_uid
from prouter.errors import AgentUnavailable
from tests.support.broker_world import ADDRESS, Listener, Worker, World, created, job_on


@pytest.mark.parametrize(("before", "after"), list(product(DialState, DialState)))
def test_a_dial_changes_as_the_table_allows_and_no_other_way(before: DialState, after: DialState) -> None:
    dial = _Dial(World().broker.dials, "host:1", "secret")
    dial.state = before
    if after in NEXT[before]:
        dial.change(after)
        assert dial.state is after
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            dial.change(after)
        assert dial.state is before


def lost(world: World) -> Worker:
    """A worker, after an agent with a job was dialled and has vanished."""
    worker, agent = world.worker(), world.listener()
    job_on(worker, ADDRESS)
    path = agent.path
    assert path is not None
    del world.listeners["host:1"]
    world.broker.disconnected(path, world.now)
    world.settle()
    return worker


def answers(world: World, worker: Worker, agent: Listener, key: str) -> bool:
    """Whether a job is created on the agent, which can only be if its connection is open."""
    call = worker.call("jobs.create", name="job", agent=ADDRESS, key=key)
    world.run(3)
    return bool(created(worker, call)["at"]["connection"] == connection_uid(agent.incarnation, "CLIENT"))


@pytest.mark.parametrize("waits", [True, False], ids=["a creation waits", "only its jobs are expected"])
def test_a_dialled_agent_that_comes_back_as_a_new_one_keeps_its_new_connection(waits: bool) -> None:
    world = World()
    worker = lost(world)
    back = world.listener(incarnation="d" * 32)
    if not waits:
        world.run(8)
    assert answers(world, worker, back, "key-2")
    assert len(world.broker.links) == len(world.broker.dials) == 1
    assert answers(world, worker, back, "key-3")
    assert len(back.hellos) == 1


def test_the_end_of_a_lost_link_does_not_end_the_wait_of_a_creation() -> None:
    world = World(return_patience=5.0)
    worker = lost(world)
    world.run(3)
    call = worker.call("jobs.create", name="job", agent=ADDRESS, key="key-2")
    world.run(4)
    assert len(world.broker.links) == 0
    world.run(7)
    assert isinstance(worker.results[call], AgentUnavailable)
    assert len(world.broker.dials) == 0


def test_a_creation_that_waits_for_an_agent_about_to_stop_reaches_its_successor() -> None:
    world = World()
    worker, agent = world.worker(), world.listener()
    job_on(worker, ADDRESS)
    link = next(iter(world.broker.links))
    world.broker.links.leave(link)
    call = worker.call("jobs.create", name="job", agent=ADDRESS, key="key-2")
    back = world.listener(incarnation="d" * 32)
    assert agent.path is not None
    link.left(agent.path, "shutdown", world.now)
    world.run(3)
    assert created(worker, call)["at"]["connection"] == connection_uid(back.incarnation, "CLIENT")
