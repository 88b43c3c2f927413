"""Heartbeats of the broker's paths: whom it asks, when, and how many at once."""

from __future__ import annotations

from prouter.fabric.session import LISTENER_PATIENCE, SessionEvent
from tests.support.broker_world import Agent, World


def quiet(world: World, uid: str, incarnation: str) -> Agent:
    """An agent that answers and says nothing by itself."""
    agent = world.agent(uid, incarnation)

    def tick(now: float) -> tuple[list[object], SessionEvent | None]:
        return [], None

    agent.session.tick = tick  # type: ignore[method-assign, assignment]
    return agent


def test_an_agent_that_says_nothing_by_itself_is_asked_before_it_is_lost() -> None:
    world = World()
    agent = quiet(world, "agent-1", "a" * 32)
    for _ in range(30):
        world.run(1.0)
        assert world.path_of(agent) is not None
    assert not agent.lost


def test_an_iteration_asks_some_of_those_that_are_due_and_the_next_ones_ask_the_others() -> None:
    world = World()
    agents = [quiet(world, f"agent-{number}", f"{number:032x}") for number in range(250)]
    most = world.env.settings.bounds.iteration
    asked = []
    world.run(2.0 * LISTENER_PATIENCE - 0.1)
    world.now += 0.2
    for _ in range(4):
        world.now += 0.001
        world.broker.iterate(world.now)
        paths = world.env.outbox.take()
        asked.append(len(paths))
        for path in paths:
            path.pending.clear()
    assert asked == [most, most, len(agents) - 2 * most, 0]


def test_paths_that_are_dropped_are_not_looked_at() -> None:
    world = World()
    agents = [quiet(world, f"agent-{number}", f"{number:032x}") for number in range(3)]
    world.vanish(agents[1])
    world.run(20.0)
    assert len(world.broker.heartbeats) == 2
    assert [world.path_of(agent) is not None for agent in agents] == [True, False, True]
