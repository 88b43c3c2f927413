"""Admission of agents: which may link, in whose place, and how many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prouter.broker.access.gate import Rules, Settle
from prouter.broker.base.security import Security
from prouter.broker.links import links as links_module
from prouter.broker.links.hello import CLIENT, SERVER, AgentInfo
from prouter.broker.store.restore import Saved, SavedConnection
from prouter.errors import ProtocolError
from prouter.jobs import State
from prouter.keys.invitations import Bound, Invitation, Refused, hash_of, new_token
from tests.support.broker_world import Agent, World, job_on


def replayed(world: World, of: Agent, path: int = 2, **hello: Any) -> Agent:
    """Somebody with the HELLO of `of`, or most of it, over a path of their own; `of` is there still."""
    other = of.again(path)
    other.hello.update(hello)
    world.join(other)
    return other


@pytest.mark.parametrize("hello", [{}, {"process": "another"}])
def test_an_old_hello_does_not_replace_an_agent_that_answers(hello: dict[str, Any]) -> None:
    world = World()
    worker, agent = world.worker(), world.agent(process="first")
    thief = replayed(world, agent, **hello)
    assert not thief.ready
    world.run(1.1)
    assert thief.refusal == ("uid_in_use", "an agent with uid 'agent-1' is already linked and alive")
    assert world.path_of(agent) is not None
    assert len(worker.of("link.up")) == 1
    assert not worker.of("link.down")


def test_an_agent_that_only_talks_is_alive_too() -> None:
    """Its answer may have to wait behind much else on a slow way."""
    world = World()
    agent = world.agent()
    thief = replayed(world, agent)
    agent.held = []
    for _ in range(11):
        world.run(0.1)
        agent.notify("load", load=1.0, running=0)
    assert thief.refusal is not None


def test_an_agent_that_restarted_is_welcomed_as_soon_as_its_old_connection_is_seen_to_close() -> None:
    world = World()
    agent = world.agent()
    agent.held = []
    again = replayed(world, agent, process="second")
    assert not again.ready
    world.vanish(agent)
    world.run(0.01)
    assert again.ready


def test_of_two_attempts_of_an_agent_the_later_one_counts() -> None:
    world = World()
    agent = world.agent()
    agent.held = []
    first, second = replayed(world, agent, 2), replayed(world, agent, 3)
    world.run(1.1)
    assert second.ready
    assert not first.ready
    assert ("agents", first.rid) in world.closed


def test_a_stranger_in_the_queue_does_not_keep_the_agent_itself_out() -> None:
    world = World()
    agent = world.agent()
    agent.held = []
    stranger = world.agent(incarnation="d" * 32)
    again = replayed(world, agent)
    world.run(1.1)
    assert again.ready
    assert not stranger.ready


def test_a_broker_that_stood_still_judges_nobody_by_that_time() -> None:
    world = World()
    agent = world.agent()
    agent.held = []
    thief = replayed(world, agent)
    world.now += 30
    world.broker.iterate(world.now)
    assert not thief.ready
    agent.say(*agent.held)
    world.run(1.1)
    assert thief.refusal is not None


def test_an_agent_may_be_renamed_while_its_jobs_live() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    world.vanish(agent)
    renamed = Agent(world, "new-name", agent.incarnation, 2)
    renamed.jobs = agent.jobs
    world.join(renamed)
    assert renamed.ready
    info = worker.ask("jobs.info", **job["at"])["job"]
    assert (info["state"], info["agent"]["uid"]) == ("RUNNING", "new-name")
    assert not world.broker.links.of_agent("agent-1")
    assert [link["peer"]["auth"]["uid"] for link in worker.connections()] == ["new-name"]


@pytest.mark.parametrize("kind", ["router", "worker", None, 5, "agent\n"])
def test_only_agents_are_let_in_as_agents(kind: object) -> None:
    world = World()
    other = Agent(world, "agent-1", "a" * 32)
    other.hello["kind"] = kind
    world.join(other)
    assert other.refusal is not None
    assert other.refusal[0] == "bad_hello"
    assert "is for agents" in other.refusal[1]


def test_a_router_does_not_link_to_itself() -> None:
    world = World()
    worker = world.worker()
    world.listener(incarnation=world.env.incarnation)
    call = worker.call(
        "jobs.create", name="job", key="k", agent={"type": "address", "address": "host:1", "token": "secret"}
    )
    assert "is this router" in worker.results[call].detail
    assert len(world.broker.links) == 0


@pytest.mark.parametrize("name", ["uid", "name", "process", "version"])
@pytest.mark.parametrize("value", ["x" * 129, "two\nlines", "\x1b[31m", "\u2028", "\udc80"])
def test_texts_that_would_spoil_lists_and_logs_are_refused_with_the_reason(name: str, value: str) -> None:
    info = {"uid": "a", "incarnation": "0" * 32, name: value}
    world = World()
    agent = Agent(world, "agent-1", "a" * 32)
    agent.hello.update(info)
    if value == "\udc80":
        return  # msgpack has no lone surrogates
    world.join(agent)
    assert agent.refusal is not None
    assert agent.refusal[0] == "bad_hello"
    assert agent.refusal[1].startswith(f"{name} has ")


def nested(levels: int) -> dict[str, Any]:
    """A map with maps in it, so many levels in all."""
    made: dict[str, Any] = {}
    for _ in range(levels - 1):
        made = {"x": made}
    return made


@pytest.mark.parametrize("name", ["properties", "platform", "capacity"])
def test_what_an_agent_tells_is_nested_so_deep_that_everybody_can_read_it(name: str) -> None:
    info = {"uid": "a", "incarnation": "0" * 32}
    AgentInfo.from_hello({**info, name: nested(32)})
    AgentInfo.from_hello({**info, name: {"x": [nested(30)] * 2}})
    for deep in (nested(33), nested(500), {"x": [nested(31)]}):
        with pytest.raises(ProtocolError, match=f"{name} must be nested at most 32 levels"):
            AgentInfo.from_hello({**info, name: deep})


def test_long_names_that_fit_are_welcome() -> None:
    assert World().agent("ü" * 128, process="p" * 128, name="n" * 128).ready


def test_agents_are_bounded_for_each_token() -> None:
    world = World(tokens=("first-token", "other-token"), max_agents=2)
    agents = [world.agent(f"a{n}", f"{n:032x}", token="first-token") for n in range(3)]
    assert [agent.ready for agent in agents] == [True, True, False]
    assert agents[2].refusal is not None
    assert agents[2].refusal[0] == "too_many_agents"
    assert "server.max_agents" in agents[2].refusal[1]
    assert world.agent("b", "e" * 32, token="other-token").ready
    world.vanish(agents[0])

    back = agents[0].again(2)
    world.join(back)
    assert back.ready, "one that is known comes back"


def test_agents_that_are_away_without_a_job_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "_AWAY", 3)
    world = World()
    worker, keeper = world.worker(), world.agent(keep_for=30 * 86400)
    job = job_on(worker)
    keeper.change(job["uid"], state=State.RUNNING)
    world.vanish(keeper)
    for number in range(50):
        world.vanish(world.agent(f"a{number}", f"{number:032x}", keep_for=30 * 86400))
    away = [link for link in world.broker.links if not link.up]
    assert len(away) <= 5
    assert keeper.connection in {link.connection for link in away}, "it has a job"


def test_nobody_is_waited_for_longer_than_the_router_wants() -> None:
    world = World(max_absence=50.0)
    world.worker()
    agent = world.agent(keep_for=365 * 86400, orphan_timeout=365 * 86400)
    world.vanish(agent)
    world.run(54, step=1)
    assert len(world.broker.links) == 1
    world.run(2, step=1)
    assert len(world.broker.links) == 0


def saved(uid: str, connection: str, incarnation: str, mode: str = SERVER) -> SavedConnection:
    info = AgentInfo(uid=uid, name="", incarnation=incarnation, platform={}, properties={}, keep_for=365 * 86400)
    return SavedConnection(connection, mode, info, 0.0, False, None)


def test_an_agent_linked_before_an_upgrade_keeps_the_paths_of_its_jobs() -> None:
    world = World(Saved(connections=[saved("agent-1", "a" * 32, "a" * 32)]))
    agent = world.agent()
    assert agent.welcome is not None
    assert agent.welcome["connection"] == "a" * 32
    assert world.broker.links.find("a" * 32, CLIENT) is None
    assert len(world.broker.links) == 1


def test_a_database_full_of_links_keeps_nobody_waiting() -> None:
    """More than fit into one message, with texts longer than those taken today."""
    connections = [saved(f"{n:05d}" + "u" * 1019, f"{n:032x}", f"{n:032x}") for n in range(3000)]
    world = World(Saved(connections=connections))
    worker = world.worker()
    assert worker.welcome is not None
    parts = worker.of("links")
    assert sum(len(part["links"]) for part in parts) == 3000
    assert len(parts) > 3
    assert [part["last"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "links" not in worker.welcome


def test_the_name_of_a_connection_is_nobodys_incarnation() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    world.vanish(agent)
    thief = Agent(world, "thief", agent.connection)
    world.join(thief)
    assert thief.welcome is not None
    assert thief.welcome["connection"] != agent.connection
    world.join(agent.again(2))
    assert worker.ask("jobs.info", **job["at"])["job"]["agent"]["uid"] == agent.uid
    obituary = Agent(world, agent.uid, agent.connection, 9)
    obituary.hello["kind"] = "obituary"
    world.join(obituary)
    world.run(2)
    assert world.broker.links.get(agent.connection) is not None


def test_an_agent_that_is_dialled_does_not_take_the_place_of_another_that_is_linked() -> None:
    world = World()
    worker = world.worker()
    world.listener("host:1")
    job = job_on(worker, {"type": "address", "address": "host:1", "token": "secret"})
    world.listener("host:2", incarnation="d" * 32)
    agent = {"type": "address", "address": "host:2", "token": "secret"}
    call = worker.call("jobs.create", name="job", key="other", agent=agent)
    assert "is linked already" in worker.results[call].detail
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "NEW"
    assert len(world.broker.links) == 1


def invited(world: World, uses: int | None = 1) -> tuple[Invitation, str]:
    """An invitation that the broker knows, and its token."""
    token = new_token()
    one = Invitation("cafe", hash_of(token), "", uses, world.wall(), world.wall() + 60, {})
    world.broker.access_changed(Rules((one,)), world.now)
    world.broker.gate.bind = lambda invitation, holder, settle: settle(Bound(), world.now)
    return one, token


def test_an_invited_agent_links_and_loses_its_link_when_the_invitation_is_revoked() -> None:
    world = World(closed=True)
    one, token = invited(world)
    worker, agent = world.worker(), world.agent(token=token)
    assert agent.ready
    other = world.agent("agent-2", "e" * 32, token=token)
    assert other.refusal is not None
    assert (other.refusal[0], "used by agent 'agent-1'" in other.refusal[1]) == ("bad_token", True)
    world.broker.access_changed(Rules((one,), {}), world.now)
    assert len(worker.connections()) == 1
    world.broker.access_changed(Rules(), world.now)
    world.settle()
    assert ("agents", agent.rid) in world.closed
    assert worker.connections() == []
    again = agent.again(2)
    world.join(again)
    assert again.refusal is not None
    assert "was revoked" in again.refusal[1]


def test_an_agent_whose_invitation_is_revoked_while_it_waits_is_refused() -> None:
    world = World(closed=True)
    _, token = invited(world, uses=None)
    agent = world.agent(token=token)
    agent.held = []
    again = replayed(world, agent, process="second")
    world.broker.access_changed(Rules(), world.now)
    world.run(1.5)
    assert not again.ready
    assert again.refusal is not None
    assert "was revoked" in again.refusal[1]


def test_an_agent_is_welcome_only_when_it_is_stored_that_it_holds_the_invitation() -> None:
    world = World(closed=True)
    _, token = invited(world)
    waiting: list[Settle] = []
    world.broker.gate.bind = lambda invitation, holder, settle: waiting.append(settle)
    first, second = world.agent(token=token), world.agent("agent-2", "e" * 32, token=token)
    assert (first.ready, second.ready) == (False, False)
    waiting[0](Bound(), world.now)
    waiting[1](Refused("it was used by agent 'agent-1'"), world.now)
    world.settle()
    assert first.ready
    assert second.refusal == ("bad_token", "it was used by agent 'agent-1'")


def test_restored_links_of_an_invitation_revoked_meanwhile_are_dropped() -> None:
    connection = saved("agent-1", "a" * 32, "a" * 32)
    invited_one = replace(connection, info=replace(connection.info, admitted_by="invitation:cafe"))
    world = World(Saved(connections=[invited_one]), closed=True)
    assert len(world.broker.links) == 1
    world.broker.access_changed(Rules(), world.now)
    assert len(world.broker.links) == 0


def test_agents_learn_the_keys_of_the_router_with_the_welcome_and_when_they_change() -> None:
    world = World()
    world.broker.access_changed(Rules(router_keys=("one",)), world.now)
    agent = world.agent()
    assert agent.welcome is not None
    assert agent.welcome["keys"] == ["one"]
    world.broker.access_changed(Rules(router_keys=("one", "two")), world.now)
    world.settle()
    assert agent.of("keys") == [{"keys": ["one", "two"]}]


def test_connections_tell_whether_they_are_encrypted() -> None:
    world = World()
    worker = world.worker()
    agent = Agent(world, "agent-1", "a" * 32)
    agent.security = Security(public_key="k" * 40)
    world.join(agent)
    assert [link["encrypted"] for link in worker.connections()] == [True]
    world.vanish(agent)
    plain = agent.again(2)
    world.join(plain)
    assert [link["encrypted"] for link in worker.connections()] == [False]


def test_an_agent_whose_key_is_not_known_is_not_dialled() -> None:
    world = World()
    worker = world.worker()
    world.listener("host:1")
    world.undialable["host:1"] = "its key is not known"
    agent = {"type": "address", "address": "host:1", "token": "secret"}
    call = worker.call("jobs.create", name="job", key="k", agent=agent)
    assert (worker.results[call].code, worker.results[call].detail) == ("agent_key_unknown", "its key is not known")
    assert world.dials == []
    del world.undialable["host:1"]
    assert job_on(worker, agent)["state"] == "NEW"


def test_a_challenger_that_has_left_does_not_win_against_a_silent_agent() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.held = []
    world.vanish(replayed(world, agent))
    world.run(2)
    assert not worker.of("link.down")
    agent.say(*agent.held)
    agent.held = None
    world.run(30)
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "NEW"
    assert len(worker.of("link.up")) == 1


def test_the_place_of_a_challenger_that_has_left_is_free_for_another() -> None:
    world = World()
    agent = world.agent()
    agent.held = []
    world.vanish(replayed(world, agent))
    successor = world.agent(incarnation="d" * 32)
    world.run(1.1)
    assert successor.ready


def test_a_challenger_that_repeats_its_hello_waits_on_and_is_linked_once() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.held = []
    again = replayed(world, agent, process="second")
    again.say(*again.session.start())
    assert ("agents", again.rid) not in world.closed
    world.run(1.1)
    assert again.ready
    assert len(worker.of("link.up")) == 2
    assert not world.broker.admission._under_way


def test_an_agent_that_leaves_while_its_invitation_is_stored_is_not_linked() -> None:
    world = World()
    _, token = invited(world)
    settled: list[Settle] = []
    world.broker.gate.bind = lambda invitation, holder, settle: settled.append(settle)
    agent = world.agent(token=token)
    agent.say(*agent.session.start())
    assert len(settled) == 1, "it has repeated its HELLO"
    world.vanish(agent)
    settled[0](Bound(), world.now)
    world.settle()
    assert len(world.broker.links) == 0
    assert not world.broker.admission._under_way
