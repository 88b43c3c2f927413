"""A link changes its state only as its table allows."""

from __future__ import annotations

from itertools import product

import pytest

from prouter.broker.base.switch import Path
from prouter.broker.links.hello import SERVER
from prouter.broker.links.link import NEXT, Link, LinkState
from prouter.fabric.session import Session
from tests.support.broker_world import BY_UID, World, job_on


def path() -> Path:
    return Path(None, b"", Session(0.0, 2.0), 0.0)


def link_in(state: LinkState) -> Link:
    world = World()
    agent = world.agent()
    link = world.broker.links.get(agent.connection)
    assert link is not None
    link.state, link.path = state, path() if state is LinkState.UP else None
    return link


@pytest.mark.parametrize(("before", "after"), list(product(LinkState, LinkState)))
def test_a_link_changes_as_the_table_allows_and_no_other_way(before: LinkState, after: LinkState) -> None:
    link = link_in(before)
    new = path() if after is LinkState.UP else None
    if after in NEXT[before]:
        link.change(after, new)
        assert (link.state, link.path, link.up) == (after, new, after is LinkState.UP)
    else:
        with pytest.raises(RuntimeError, match=f"from {before.value} to {after.value}"):
            link.change(after, new)
        assert link.state is before


def test_a_link_has_a_path_exactly_while_it_is_up() -> None:
    link = link_in(LinkState.AWAY)
    with pytest.raises(RuntimeError):
        link.change(LinkState.UP)
    link = link_in(LinkState.UP)
    with pytest.raises(RuntimeError):
        link.change(LinkState.AWAY, path())


def test_a_link_goes_down_comes_back_and_is_gone() -> None:
    world = World()
    agent = world.agent(keep_for=60.0)
    link = world.broker.links.find(agent.incarnation, SERVER)
    assert link is not None
    states = [link.state]
    world.vanish(agent)
    states.append(link.state)
    back = agent.again(2)
    world.join(back)
    states.append(link.state)
    world.join(agent.again(3))  # The old path's end was not noticed.
    world.run(2)
    states.append(link.state)
    world.broker.links.drop(link, "its process ended", world.now)
    states.append(link.state)
    up, away, gone = LinkState.UP, LinkState.AWAY, LinkState.GONE
    assert states == [up, away, up, up, gone]
    assert world.broker.links.get(link.connection) is None


def test_new_work_waits_for_an_agent_that_stops_and_comes_back() -> None:
    world = World()
    worker, agent = world.worker(), world.agent(keep_for=60.0)
    job = job_on(worker)
    agent.notify("leaving")
    down = {"connection": agent.connection, "reason": "the agent is being restarted", "gone": False, "leaving": True}
    assert worker.of("link.down") == [down]
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-2")
    assert call not in worker.results
    agent.change(job["uid"], name="said before it stopped")
    assert worker.ask("jobs.info", **job["at"])["job"]["name"] == "said before it stopped"
    again = agent.again(2)
    world.join(again)
    assert "job" in worker.results[call]
    assert worker.of("link.up")[-1]["up"]
