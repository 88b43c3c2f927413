"""Finished jobs age by a clock that cannot be set wrong, because their files are deleted with them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from prouter.broker.base.steady import SteadyClock
from prouter.broker.store.opening import read_store
from prouter.broker.store.restore import Saved
from prouter.jobs import Reason, State
from tests.support.broker_world import Agent, World, job_on, listed

DAY = 86400.0
HOUR = 3600.0
AGE = 30 * DAY


class Clocked(World):
    """A world whose wall clock can be set without the monotonic one noticing."""

    def __init__(self, saved: Saved | None = None, shift: float = 0.0, **settings: Any) -> None:
        self.shift = shift
        super().__init__(saved, **{"history_age": AGE, **settings})

    def wall(self) -> float:
        return super().wall() + self.shift

    def restarted(self, shift: float) -> Clocked:
        """The next broker, over what this one has written down."""
        with closing(sqlite3.connect(":memory:")) as database:
            read_store(database)
            for statement, parameters in self.recorder.statements:
                database.execute(statement, parameters)
            return Clocked(read_store(database), shift)


def finished(world: Clocked, agent: Agent, number: int = 0, **fields: Any) -> str:
    """A job that has ended; its uid."""
    worker = world.worker()
    uid: str = job_on(worker, key=f"key-{number}")["uid"]
    agent.change(uid, state=State.FINISHED, reason=Reason.EXITED, exit_code=0, **fields)
    return uid


def kept(world: Clocked, uid: str) -> bool:
    return world.broker.ledger.table.get(uid) is not None


@pytest.mark.parametrize("jump", [40 * DAY, -40 * DAY, 3650 * DAY])
def test_a_clock_that_is_wrong_for_a_while_deletes_nothing(jump: float) -> None:
    world = Clocked()
    agent = world.agent()
    before = finished(world, agent)
    world.run(2 * HOUR, step=60)
    world.shift = jump
    during = finished(world, agent, 1)
    world.run(120, step=10)
    world.shift = 0.0
    world.run(2 * HOUR, step=60)
    assert kept(world, before)
    assert kept(world, during)
    assert not any(op == "job.remove" for op, _ in agent.asked_for)


@pytest.mark.parametrize("shift", [40 * DAY, -40 * DAY])
def test_a_router_that_starts_with_a_wrong_clock_deletes_nothing(shift: float) -> None:
    world = Clocked()
    uid = finished(world, world.agent())
    again = world.restarted(shift)
    again.run(3 * HOUR, step=60)
    assert kept(again, uid)
    again.shift = 0.0
    again.run(3 * HOUR, step=60)
    assert kept(again, uid)


@pytest.mark.parametrize("finished_at", [1.0, 1_700_000_000.0 - 40 * DAY, 1_700_000_000.0 + 4000 * DAY])
def test_the_clock_of_an_agent_does_not_matter(finished_at: float) -> None:
    world = Clocked(history_age=DAY)
    agent = world.agent()
    uid = finished(world, agent, finished_at=finished_at)
    world.run(0.9 * DAY, step=300)
    assert kept(world, uid)
    world.run(0.2 * DAY, step=300)
    assert not kept(world, uid)
    assert agent.asked_for[-1][0] == "job.remove"


def test_jobs_go_when_they_are_old_enough_and_not_in_the_first_hour() -> None:
    world = Clocked(history_age=60.0)
    uid = finished(world, world.agent())
    world.run(HOUR - 120, step=30)
    assert kept(world, uid)
    world.run(300, step=30)
    assert not kept(world, uid)


def test_the_number_of_jobs_is_kept_to_at_once() -> None:
    world = Clocked(history=2)
    agent = world.agent()
    uids = [finished(world, agent, number) for number in range(5)]
    world.run(1)
    assert [kept(world, uid) for uid in uids] == [False] * 3 + [True] * 2
    assert len(listed(world.worker())) == 2


def test_the_steady_clock_begins_at_the_last_event_and_keeps_time() -> None:
    wall = 5000.0
    clock = SteadyClock(lambda: wall, 100.0, 3000.0)
    assert clock.time(160.0) == 3060.0
    wall = 9000.0
    assert clock.time(160.0) == 3060.0
    assert clock.stamp(160.0) == 9000.0
    wall = 10.0
    assert clock.stamp(160.0) == 3060.0
    assert clock.ran(160.0) == 60.0
    assert SteadyClock(lambda: 10.0, 0.0, 3000.0).time(0.0) == 10.0
    assert SteadyClock(lambda: 10.0, 0.0, None).time(1.0) == 11.0
