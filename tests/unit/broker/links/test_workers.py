"""The broker's knowledge of workers, and its events for them, without sockets."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from prouter.broker.base.switch import Path
from prouter.broker.links.workers import NEXT, Worker, WorkerState
from prouter.fabric.calls import event_frame
from prouter.fabric.session import Session
from prouter.jobs import State
from tests.support.broker_world import World, job_on


def test_a_silent_worker_is_waited_for_and_a_dead_one_is_not() -> None:
    world = World()
    agent, worker, other = world.agent(), world.worker(), world.worker("worker-2")
    worker.frozen = True
    world.run(10)
    assert not agent.of("worker.down")
    world.broker.worker_died("worker-2", world.now)
    world.settle()
    assert agent.of("worker.down") == [{"worker": other.uid}]
    world.run(28)
    assert agent.of("worker.down") == [{"worker": "worker-2"}, {"worker": "worker-1"}]


def test_agents_hear_of_workers_when_they_link() -> None:
    world = World()
    world.worker()
    agent = world.agent()
    world.run(0.1)
    assert agent.of("workers")[-1] == {"workers": ["worker-1"]}
    world.worker("worker-2")
    assert agent.of("worker.up")[-1] == {"worker": "worker-2"}


def test_after_a_restart_workers_have_time_to_come_back_before_agents_give_them_up() -> None:
    world = World(workers_return=3.0)
    agent = world.agent()
    world.worker()
    world.run(2.9)
    assert not agent.of("workers")
    assert agent.of("worker.up") == [{"worker": "worker-1"}]
    world.run(0.3)
    assert agent.of("workers") == [{"workers": ["worker-1"]}]


def test_waits_of_a_dead_worker_are_forgotten() -> None:
    world = World()
    worker = world.worker()
    agent = world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    worker.call("jobs.wait", until=None, **job["at"])
    assert len(world.broker.waits) == 1
    world.broker.worker_died(worker.uid, world.now)
    assert len(world.broker.waits) == 0
    assert world.broker.service.running == 0


def test_workers_hear_how_many_fast_streams_the_others_have() -> None:
    world = World()
    one, two, three = (world.worker(f"worker-{number}") for number in (1, 2, 3))
    one.say(event_frame("bulk", {"streams": 2}))
    assert [worker.of("bulk") for worker in (one, two, three)] == [[], [{"elsewhere": 2}], [{"elsewhere": 2}]]
    two.say(event_frame("bulk", {"streams": 1}))
    assert [worker.of("bulk")[-1] for worker in (one, two, three)] == [
        {"elsewhere": 1},
        {"elsewhere": 2},
        {"elsewhere": 3},
    ]
    assert len(two.of("bulk")) == 1, "no news"
    world.broker.worker_died(one.uid, world.now)
    world.settle()
    assert [worker.of("bulk")[-1] for worker in (two, three)] == [{"elsewhere": 0}, {"elsewhere": 1}]
    world.vanish(two)
    again = world.worker("worker-2")
    assert three.of("bulk")[-1] == {"elsewhere": 0}, "its streams are counted again when it says how many"
    again.say(event_frame("bulk", {"streams": 1}))
    assert three.of("bulk")[-1] == {"elsewhere": 1}
    assert again.of("bulk") == []


@pytest.mark.parametrize("body", [{}, {"streams": -1}, {"streams": "2"}, {"streams": None}, {"streams": True}])
def test_a_count_of_fast_streams_that_is_none_is_malformed(body: dict[str, Any]) -> None:
    world = World()
    one, two = world.worker("worker-1"), world.worker("worker-2")
    one.say(event_frame("bulk", body))
    assert world.broker.env.counts["malformed"] == 1
    assert two.of("bulk") == []


def test_workers_hear_which_agents_are_far() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    link = worker.of("link.up")[-1]
    assert link["far"] is False, "not known yet"

    def round_trip(seconds: float) -> list[bool]:
        """Have the next one take so long; what the worker was told in all."""
        agent.held = []
        while not agent.held:
            world.run(0.1)
        world.now += seconds
        agent.say(*agent.held)
        agent.held = None
        told = worker.of("link.distance")
        assert all(body["connection"] == link["connection"] for body in told)
        return [body["far"] for body in told]

    assert round_trip(0.01) == []
    assert round_trip(0.04) == [], "not far enough"
    assert round_trip(0.1) == [True]
    assert world.worker("worker-2").of("links")[0]["links"] == [link | {"far": True}]
    assert round_trip(0.04) == [True], "not near enough"
    assert round_trip(0.01) == [True, False]


@pytest.mark.parametrize(("before", "after"), list(product(WorkerState, WorkerState)))
def test_a_worker_changes_as_the_table_allows_and_no_other_way(before: WorkerState, after: WorkerState) -> None:
    worker = Worker(World().broker.workers, "worker-1", 1)
    worker.state = before
    path = Path(None, b"", Session(0.0, 2.0), 0.0) if after is WorkerState.UP else None
    if after in NEXT[before]:
        worker.change(after, path)
        assert (worker.state, worker.path) == (after, path)
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            worker.change(after, path)
        assert worker.state is before


def test_a_worker_goes_away_comes_back_and_is_gone() -> None:
    world = World()
    peer = world.worker()
    (worker,) = world.broker.workers
    states = [worker.state]
    world.vanish(peer)
    states.append(worker.state)
    world.worker()
    states.append(worker.state)
    world.broker.worker_died("worker-1", world.now)
    states.append(worker.state)
    assert states == [WorkerState.UP, WorkerState.AWAY, WorkerState.UP, WorkerState.GONE]
    assert worker.path is None
