"""The version of the list of connections: raised before anybody is told of a change, and only for a change."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.fabric.frames import EVENT, Frame
from tests.support.broker_world import Agent, Worker, World


class Witness(Worker):
    """A worker that notes the version which workers see when it hears of something."""

    def __init__(self, world: World) -> None:
        self.versions: list[int] = []
        super().__init__(world, "witness")

    def hear(self, frames: list[Frame]) -> None:
        if any(frame.type == EVENT for frame in frames):
            self.versions.append(self.world.version)
        super().hear(frames)


@pytest.fixture
def world() -> World:
    return World()


def version(worker: Worker) -> int:
    """Have the broker make the list; return its version."""
    found: int = worker.ask("connections")["version"]
    return found


def load(agent: Agent, value: float) -> None:
    agent.notify("load", load=value, running=0)


def test_the_list_has_the_version_that_workers_see_until_it_changes(world: World) -> None:
    worker, agent = world.worker(), world.agent()
    first = version(worker)
    assert first == world.version
    assert (version(worker), worker.ask("connections.page", limit=5, after=None)["version"]) == (first, first)
    world.vanish(agent)
    assert world.version > first
    assert version(worker) == world.version


@pytest.mark.parametrize("change", ["up", "down", "leaving"])
def test_workers_hear_of_an_agent_after_the_version_was_raised(world: World, change: str) -> None:
    asking, witness = world.worker(), Witness(world)
    world.join(witness)
    agent = world.agent()
    known = version(asking)
    witness.versions.clear()
    if change == "up":
        world.agent("agent-2", "c" * 32)
    elif change == "down":
        world.vanish(agent)
    else:
        agent.notify("leaving")
        world.settle()
    assert witness.versions
    assert min(witness.versions) > known


def test_a_drain_is_answered_after_the_version_was_raised(world: World) -> None:
    worker, agent = world.worker(), world.agent()
    known = version(worker)
    worker.ask("agents.drain", connection=agent.connection, on=True)
    assert world.version > known
    known = version(worker)
    worker.ask("agents.drain", connection=agent.connection, on=True)
    assert world.version == known, "nothing has changed"


def test_figures_raise_the_version_when_those_shown_are_two_seconds_old(world: World) -> None:
    worker, agent = world.worker(), world.agent()
    world.run(5)
    known = version(worker)
    load(agent, 0.5)
    world.run(1.5)
    assert world.version == known
    world.run(1)
    assert world.version == known + 1
    load(agent, 0.6)
    world.run(10)
    assert world.version == known + 1, "nobody has the list of that version"
    known = version(worker)
    assert worker.connections()[0]["load"] == 0.6
    world.run(5)
    load(agent, 0.7)
    world.settle()
    assert world.version == known + 1


def test_neither_heartbeats_nor_the_same_figures_raise_the_version(world: World) -> None:
    worker, agent = world.worker(), world.agent()
    load(agent, 0.5)
    world.run(5)
    known = version(worker)
    for _ in range(10):
        load(agent, 0.5)
        world.run(3)
    assert world.version == known


def test_a_change_of_a_job_raises_the_version_before_the_event(world: World) -> None:
    asking, witness = world.worker(), Witness(world)
    world.join(witness)
    agent = world.agent()
    body: dict[str, Any] = {"name": "x", "agent": {"type": "uid", "uid": agent.uid}, "key": "key-1"}
    world.run(5)
    known = version(asking)
    world.run(5)
    witness.versions.clear()
    asking.ask("jobs.create", **body)
    assert witness.versions
    assert min(witness.versions) > known
