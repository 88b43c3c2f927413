"""Pages of the list of connections: each agent that stays linked is on exactly one of them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.broker_world import Worker, World


def page(worker: Worker, limit: int, after: list[Any] | None = None) -> tuple[list[str], list[Any] | None]:
    """The uids of the agents on a page, and where the next one begins."""
    reply = worker.ask("connections.page", limit=limit, after=after)
    shown = json.loads(b"[%b]" % reply["connections"])
    return [one["peer"]["auth"]["uid"] for one in shown], reply["next"]


def agents(world: World, count: int) -> list[str]:
    return [world.agent(f"agent-{number}", f"{number:032x}").uid for number in range(count)]


def test_pages_have_all_connections_in_order() -> None:
    world = World()
    worker, uids = world.worker(), agents(world, 5)
    whole = json.loads(worker.ask("connections")["connections"])["connections"]
    found: list[str] = []
    sizes: list[int] = []
    after: list[Any] | None = None
    while True:
        some, after = page(worker, 2, after)
        found += some
        sizes.append(len(some))
        if after is None:
            break
    assert sizes == [2, 2, 1]
    assert found == [one["peer"]["auth"]["uid"] for one in whole]
    assert sorted(found) == sorted(uids)
    assert page(worker, 5)[1] is None
    assert page(World().worker(), 5) == ([], None)


def test_agents_that_come_and_go_between_pages_move_no_other() -> None:
    world = World()
    worker = world.worker()
    linked = [world.agent(f"agent-{number}", f"{number:032x}") for number in range(6)]
    first, after = page(worker, 3)
    leaving = next(agent for agent in linked if agent.uid == first[-1])
    leaving.notify("leave", reason="it stops")
    world.vanish(leaving)
    world.run(60)
    world.agent("late", f"{99:032x}")
    rest, _ = page(worker, 100, after)
    assert set(first) & set(rest) == set()
    assert {agent.uid for agent in linked} <= {*first, *rest}
    assert "late" in rest


def test_a_page_is_bounded_in_bytes() -> None:
    world = World()
    worker = world.worker()
    for number in range(40):
        world.agent(f"agent-{number}", f"{number:032x}", properties={"text": "x" * 48_000})
    some, after = page(worker, 1000)
    assert 0 < len(some) < 40
    assert after is not None
