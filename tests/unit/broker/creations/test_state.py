"""A creation changes its state only as its table allows, and goes the way that the drawing shows."""

from __future__ import annotations

from collections import deque
from itertools import product
from typing import Any

import pytest

from prouter.broker.creations.state import NEXT, OVER, Creation, CreationState
from prouter.errors import AgentUnavailable, PRouterError
from tests.support.broker_world import ADDRESS, BY_UID, World

S = CreationState


def creation_in(state: CreationState) -> Creation:
    creation = Creation("job", {}, "key-1", "", lambda value, error, now: None)
    creation.state = state
    return creation


@pytest.mark.parametrize(("before", "after"), list(product(S, S)))
def test_a_creation_changes_as_the_table_allows_and_no_other_way(before: S, after: S) -> None:
    creation = creation_in(before)
    if after in NEXT[before]:
        creation.change(after)
        assert creation.state is after
        assert creation.over is (after in OVER)
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            creation.change(after)
        assert creation.state is before


def test_every_creation_can_end_and_nothing_follows_its_end() -> None:
    assert set(NEXT) == set(S)
    assert {state for state, following in NEXT.items() if not following} == OVER
    assert all(S.FAILED in NEXT[state] for state in S if state not in OVER)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[S]:
    """The states that the creations of a test go through."""
    states: list[S] = []
    change = Creation.change

    def noted(self: Creation, state: S) -> None:
        change(self, state)
        states.append(state)

    monkeypatch.setattr(Creation, "change", noted)
    return states


def test_a_job_on_an_agent_that_is_there(seen: list[S]) -> None:
    world = World()
    worker, _ = world.worker(), world.agent()
    worker.ask("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert seen == [S.RESERVED, S.CALLED, S.CREATED, S.ANSWERED]
    worker.ask("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert seen[4:] == [S.CREATED, S.ANSWERED]


def test_nobody_hears_of_the_job_before_its_key_is_stored(seen: list[S]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.recorder.held = deque()
    worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert seen == [S.RESERVED]
    assert not agent.asked_for
    world.recorder.held.popleft()(world.now)
    world.settle()
    assert seen == [S.RESERVED, S.CALLED, S.CREATED]


def test_a_job_for_an_agent_that_is_away_and_comes_back(seen: list[S]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent(keep_for=60.0)
    world.vanish(agent)
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert seen == [S.PLACING]
    world.join(agent.again(2))
    assert seen == [S.PLACING, S.RESERVED, S.CALLED, S.CREATED, S.ANSWERED]
    assert "job" in worker.results[call]


def test_a_job_for_an_agent_that_stays_away(seen: list[S]) -> None:
    world = World(hold=1.0)
    worker, agent = world.worker(), world.agent(keep_for=60.0)
    world.vanish(agent)
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    world.run(2)
    assert seen == [S.PLACING, S.FAILED]
    assert isinstance(worker.results[call], AgentUnavailable)


@pytest.mark.parametrize(
    ("tokens", "states"), [({"secret"}, [S.RESERVED, S.CALLED, S.CREATED, S.ANSWERED]), ({"x"}, [S.FAILED])]
)
def test_a_job_for_an_agent_that_is_dialled(seen: list[S], tokens: set[str], states: list[S]) -> None:
    world = World()
    worker = world.worker()
    world.listener(tokens=tokens)
    worker.call("jobs.create", name="job", agent=ADDRESS, key="key-1")
    world.run(1)
    assert seen == [S.DIALLING, *states]


def test_a_key_whose_job_the_table_does_not_know_asks_the_agent_again(seen: list[S]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    uid = "e" * 32
    world.broker.creations.keys.restore("key-1", agent.connection, uid)
    answer: dict[str, Any] = worker.ask("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert answer["job"]["uid"] == uid
    assert seen == [S.CALLED, S.CREATED, S.ANSWERED]


def test_a_job_that_its_agent_refuses(seen: list[S]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.fails["job.create"] = PRouterError("the disk is full")
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert seen == [S.RESERVED, S.CALLED, S.FAILED]
    assert "the disk is full" in str(worker.results[call])
    assert world.broker.creations.pending == 0
    assert world.broker.creations.reserved(agent.connection) == 0
