"""The broker's decisions about agents and calls to them, without sockets and with a clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from prouter.broker.base.settings import Bounds
from prouter.errors import AgentUnavailable, Forbidden, LimitReached, NotFound
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import PONG, Frame
from prouter.fabric.session import Session
from prouter.jobs import JobRecord, State
from tests.support.broker_world import ADDRESS, BY_UID, Agent, World, created, job_on, listed


def test_many_agents_ask_less_often_until_they_are_fewer_again() -> None:
    world = World(bounds=Bounds(heartbeats=1))
    agents = [world.agent(f"agent-{number}", str(number) * 32) for number in range(6)]
    world.run(60)
    assert {agent.session.heartbeat for agent in agents} == {6.0}
    for agent in agents[1:]:
        agent.frozen = True
    world.run(60)
    assert [link.up for link in world.broker.links].count(True) == 1
    assert agents[0].session.heartbeat == 2.0


def test_an_agent_silent_for_three_heartbeats_is_away_but_its_jobs_wait() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    agent.frozen = True
    world.run(5.9)
    assert not worker.of("link.down")
    world.run(0.3)
    assert [event["gone"] for event in worker.of("link.down")] == [False]
    world.run(300, step=0.5)
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "RUNNING"
    assert not worker.connections()[0]["up"]
    world.run(400, step=0.5)
    assert worker.of("link.down")[-1]["gone"], "its own orphan timeout has passed"
    assert worker.ask("jobs.info", **job["at"])["job"]["reason"] == "agent_lost"


def test_a_closed_connection_is_noticed_at_once_and_given_up_within_seconds() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    world.vanish(agent)
    assert [event["gone"] for event in worker.of("link.down")] == [False]
    world.run(5.2)
    assert [event["gone"] for event in worker.of("link.down")] == [False, True]
    assert worker.ask("jobs.info", **job["at"])["job"]["reason"] == "agent_lost"


def test_jobs_that_outlive_their_agent_are_waited_for_that_much_longer() -> None:
    world = World()
    worker, agent = world.worker(), world.agent(keep_for=60)
    job = job_on(worker)
    agent.say(agent.session.bye("upgrade"))
    world.vanish(agent)
    world.run(60, step=0.5)
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "NEW"
    back = agent.again(2)
    world.join(back)
    assert back.ready
    assert worker.ask("jobs.info", **job["at"])["job"]["confirmed"]
    world.run(60, step=0.5)
    assert not any(event["gone"] for event in worker.of("link.down"))


def test_a_lost_agent_that_returns_after_all_brings_its_jobs_back_to_life() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    world.vanish(agent)
    world.run(6)
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "FINISHED"
    world.join(agent.again(2))
    info = worker.ask("jobs.info", **job["at"])["job"]
    assert (info["state"], info["reason"], info["finished_at"]) == ("RUNNING", None, None)


def test_the_same_incarnation_replaces_its_path_unheard_of() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    again = agent.again(2)
    world.vanish(agent, closed=False)
    world.join(again)
    assert again.welcome is None
    world.run(1.1)
    assert again.ready
    assert len(worker.of("link.up")) == 2
    assert not worker.of("link.down")
    assert world.broker.env.switch.agents[agent.connection.encode()].rid == again.rid


def test_a_living_agent_keeps_its_uid_and_a_dead_one_loses_it() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    rival = world.agent(incarnation="d" * 32)
    assert not rival.ready
    world.run(1.1)
    assert rival.refusal == ("uid_in_use", "an agent with uid 'agent-1' is already linked and alive")
    agent.frozen = True
    second = world.agent(incarnation="e" * 32)
    world.run(1.1)
    assert second.ready
    assert worker.ask("jobs.info", **job["at"])["job"]["reason"] == "agent_lost"
    assert [link["uid"] for link in worker.connections()] == [second.connection]


def test_an_agent_known_to_be_away_loses_its_uid_at_once() -> None:
    world = World()
    agent = world.agent()
    world.vanish(agent)
    assert world.agent(incarnation="d" * 32).ready


def obituary(world: World, uid: str = "agent-1", incarnation: Any = "a" * 32, **fields: Any) -> None:
    """The keeper of a dead agent speaks."""
    keeper = Agent(world, uid, "a" * 32, path=9)
    keeper.hello.update(kind="obituary", incarnation=incarnation, **fields)
    keeper.session = Session(world.now, 2.0, keeper.hello)
    world.join(keeper)


def test_an_agent_reported_dead_is_not_waited_for() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.change(job["uid"], state=State.RUNNING)
    wait = worker.call("jobs.wait", **job["at"], until=None)
    world.vanish(agent)
    obituary(world)
    assert worker.results[wait]["job"]["reason"] == "agent_lost"
    assert worker.of("link.down")[-1]["gone"]
    assert world.agent(incarnation="d" * 32).ready


def test_an_agent_reported_dead_before_its_connection_was_seen_to_close_is_given_up_when_it_is() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    obituary(world)
    world.run(0.5)
    assert not worker.of("link.down")
    world.vanish(agent)
    world.run(0.6)
    assert worker.of("link.down")[-1]["gone"]


@pytest.mark.parametrize(
    "fields", [{"token": "no"}, {"uid": "agent-2"}, {"incarnation": "d" * 32}, {"incarnation": None}, {}]
)
def test_only_the_dead_are_buried(fields: dict[str, Any]) -> None:
    world = World(tokens=("good",))
    worker = world.worker()
    world.join(Agent(world, "agent-1", "a" * 32, token="good"))
    obituary(world, **{"token": "good", **fields})
    world.run(2.0)
    assert not worker.of("link.down")
    assert worker.connections()[0]["up"]


def test_incarnations_cannot_be_borrowed() -> None:
    world = World()
    world.agent()
    assert world.agent("agent-2").refusal == ("bad_hello", "the incarnation belongs to an agent with another uid")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"token": "no"}, "bad_token"),
        ({"token": None}, "bad_token"),
        ({"uid": ""}, "bad_hello"),
        ({"uid": 5}, "bad_hello"),
        ({"incarnation": "short"}, "bad_hello"),
        ({"platform": []}, "bad_hello"),
        ({"capacity": {"max": "many"}}, "bad_hello"),
        ({"keep_for": -1}, "bad_hello"),
        ({"name": "x" * 2000}, "bad_hello"),
    ],
)
def test_a_bad_introduction_is_refused_and_its_connection_closed(change: dict[str, Any], code: str) -> None:
    world = World(tokens=("good",))
    agent = Agent(world, "agent-1", "a" * 32, token="good")
    agent.hello.update(change)
    agent.session = Session(world.now, 2.0, agent.hello)
    world.join(agent)
    assert agent.refusal is not None
    assert agent.refusal[0] == code
    assert world.closed == {("agents", agent.rid)}
    assert len(world.broker.links) == 0


def test_who_comes_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(tokens=("good",))
    for number in range(50):
        world.join(Agent(world, f"agent-{number}", f"{number:032x}", token="guess"))
    assert world.broker.stats(world.now)["total.hellos_refused"] == 50
    assert sum("hello_refused" in line for line in caplog.messages) == 10
    world.now += 1
    world.join(Agent(world, "another", "a" * 32, token="guess"))
    assert sum("hello_refused" in line for line in caplog.messages) == 11


def test_another_protocol_version_is_refused() -> None:
    world = World()
    agent = Agent(world, "agent-1", "a" * 32)
    hello = agent.session.start()[0]
    world.peers[("agents", agent.rid)] = agent
    agent.say(hello._replace(payload=hello.payload.replace(b"protocol\x01", b"protocol\x63")))
    assert agent.refusal is not None
    assert agent.refusal[0] == "bad_version"


def test_introductions_beyond_the_rate_are_not_looked_at() -> None:
    world = World(bounds=Bounds(hellos=10))
    agents = [world.agent(f"agent-{i}", f"{i:032x}") for i in range(15)]
    assert sum(agent.ready for agent in agents) == 10
    world.run(3)
    assert sum(agent.ready for agent in agents) == 15, "they repeat their introduction"


def test_an_agent_that_floods_has_to_link_again() -> None:
    world = World(bounds=Bounds(frames=100))
    worker, agent = world.worker(), world.agent()
    for _ in range(600):
        agent.say(Frame(PONG))
    assert worker.of("link.down")[0]["reason"] == "it sends too much"
    again = agent.again(2)
    world.join(again)
    assert not again.ready, "one that links again at once would be heard most of the time"
    world.run(2.1)
    last = agent.again(3)
    world.join(last)
    assert last.ready


def test_many_frames_in_one_message_are_a_flood_too() -> None:
    world = World(bounds=Bounds(frames=100))
    worker, agent = world.worker(), world.agent()
    agent.say(*[Frame(PONG)] * 600)
    assert worker.of("link.down")


def test_no_turn_takes_long_whatever_arrives_at_once() -> None:
    world = World(bounds=Bounds(iteration=10))
    worker, agent = world.worker(), world.agent()
    jobs = []
    for number in range(30):
        jobs.append(job_on(worker, key=f"key-{number}"))
        agent.change(jobs[-1]["uid"], state=State.RUNNING)
        world.run(0.1)
    waits = [worker.caller.call("jobs.wait", {**jobs[0]["at"], "until": None}) for _ in range(100)]
    worker.say(*[frame for _, frame in waits])  # as after a restart
    assert len(world.broker.waits) <= 10
    for turn in range(2, 20):
        if len(world.broker.waits) < 100:
            assert world.env.timers.deadline() == world.now, "the loop would sleep"
        world.broker.iterate(world.now)
        assert len(world.broker.waits) <= 10 * turn
    assert len(world.broker.waits) == 100

    def answered() -> int:
        return sum(call_id in worker.results for call_id, _ in waits)

    agent.change(jobs[0]["uid"], state=State.FINISHED)
    assert 0 < answered() <= 10
    world.run(2)
    assert answered() == 100
    agent.say(agent.session.bye("shutdown"))
    lost = "jobs.FINISHED"
    assert 1 < world.broker.stats(world.now)[lost] <= 12
    world.run(2)
    assert world.broker.stats(world.now)[lost] == 30


def test_what_a_peer_said_before_its_connection_closed_counts() -> None:
    world = World(bounds=Bounds(iteration=10))
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    world.run(0.1)
    record = replace(agent.jobs[job["uid"]], state=State.RUNNING, revision=9).to_wire()
    path = world.path_of(agent)
    assert path is not None
    news = event_frame("job", {"record": record})
    world.broker.receive(path, [*[Frame(PONG)] * 50, news], world.now)
    world.broker.disconnected(path, world.now)
    assert world.broker.stats(world.now)["links.up"] == 1
    for _ in range(5):
        world.broker.iterate(world.now)
    world.settle()
    assert world.broker.stats(world.now)["links.up"] == 0
    assert worker.ask("jobs.info", **job["at"])["job"]["state"] == "RUNNING"


def test_a_broker_that_stood_still_blames_nobody() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.now += 60
    world.broker.iterate(world.now)
    world.settle()
    world.run(3)
    assert not worker.of("link.down")
    assert agent.ready


# -- calls to agents


def test_a_call_waits_for_an_agent_that_is_away_as_long_as_it_is_held() -> None:
    world = World(hold=10.0)
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    world.vanish(agent, closed=False)
    world.run(7)
    call = worker.call("jobs.start", request={}, key="k", **job["at"])
    world.run(9)
    assert call not in worker.results
    world.run(2)
    assert isinstance(worker.results[call], AgentUnavailable)
    second = worker.call("jobs.start", request={}, key="k", **job["at"])
    world.join(agent.again(2))
    assert worker.results[second]["job"]["state"] == "RUNNING"


def test_a_call_in_flight_is_repeated_when_the_agent_is_back() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call = worker.call("jobs.start", request={}, key="k", **job["at"])
    world.vanish(agent)
    again = agent.again(2)
    again.responder = type(agent.responder)()
    world.join(again)
    assert worker.results[call]["job"]["state"] == "RUNNING"
    assert [op for op, _ in again.asked_for] == ["job.start"]


def test_a_call_in_flight_fails_when_the_agent_stays_away() -> None:
    world = World(resume_timeout=30.0)
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call = worker.call("jobs.stop", grace=1, **job["at"])
    world.vanish(agent, closed=False)
    world.run(35)
    assert call not in worker.results
    world.run(3)
    assert isinstance(worker.results[call], AgentUnavailable)


def test_calls_to_an_agent_that_is_gone_say_so() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call = worker.call("jobs.stop", grace=1, **job["at"])
    agent.say(agent.session.bye("shutdown"))
    assert worker.results[call].code == "agent_lost"
    with pytest.raises(AgentUnavailable) as caught:
        worker.ask("jobs.start", request={}, key="k", **job["at"])
    assert caught.value.code == "agent_lost"


@pytest.mark.parametrize("leaves", [False, True], ids=["linked", "links again meanwhile"])
def test_usage_falls_back_to_the_table_when_the_agent_is_slow(leaves: bool) -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    job = job_on(worker)
    agent.silent = True
    call = worker.call("jobs.info", usage=True, **job["at"])
    if leaves:
        world.vanish(agent)
        world.run(0.5)
        back = agent.again(2)
        back.silent = True
        world.join(back)
        assert back.ready
    world.run(2.2)
    assert worker.results[call]["job"]["state"] == "NEW"


# -- creating


def test_the_agent_hears_of_a_job_only_after_it_was_written_down() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.recorder.held = held = deque[Any]()
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    assert not agent.asked_for
    statement, parameters = world.recorder.statements[-1]
    assert statement.startswith("INSERT OR REPLACE INTO keys")
    assert parameters[:2] == ("key-1", agent.connection)
    held.popleft()(world.now)
    world.settle()
    assert call not in worker.results, "the job itself is not written down"
    held.popleft()(world.now)
    world.settle()
    assert created(worker, call)["uid"] == parameters[2]


def test_two_creates_with_one_key_at_once_make_one_job() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    calls = [worker.call("jobs.create", name="job", agent=BY_UID, key="key-1") for _ in range(2)]
    agent.silent = False
    agent.answer(next(iter(agent.responder._running)), *agent.asked_for[0])
    assert created(worker, calls[0])["uid"] == created(worker, calls[1])["uid"]
    assert len(agent.jobs) == 1


def test_a_create_that_was_given_up_leaves_no_job_behind() -> None:
    world = World(resume_timeout=5.0)
    worker, agent = world.worker(), world.agent()
    agent.silent = True
    call = worker.call("jobs.create", name="job", agent=BY_UID, key="key-1")
    world.vanish(agent, closed=False)
    world.run(12)
    assert isinstance(worker.results[call], AgentUnavailable)
    uid = agent.asked_for[0][1]["uid"]
    back = agent.again(2)
    back.jobs[uid] = JobRecord(uid, agent.connection, "job")
    world.join(back)
    assert back.asked_for == [("job.remove", {"uid": uid, "unwanted_by": "router-1"})]
    assert not listed(worker)


def test_an_error_of_the_agent_is_passed_on_and_frees_the_key() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    agent.fails["job.create"] = LimitReached("full")
    with pytest.raises(LimitReached, match="full"):
        job_on(worker)
    agent.fails.clear()
    assert job_on(worker)["state"] == "NEW"


def test_an_agent_without_a_free_slot_gets_no_job() -> None:
    world = World()
    worker = world.worker()
    world.agent(capacity={"max": 2})
    jobs = [job_on(worker, key=f"key-{i}") for i in range(2)]
    with pytest.raises(LimitReached, match="no free slot on agent 'agent-1'"):
        job_on(worker, key="key-3")
    worker.ask("jobs.remove", **jobs[0]["at"])
    assert job_on(worker, key="key-4")


def test_jobs_go_where_the_properties_are_and_the_load_is_low() -> None:
    world = World()
    worker = world.worker()
    for number, (colour, load) in enumerate([("red", 0.1), ("blue", 2.0), ("blue", 0.5)]):
        agent = world.agent(f"agent-{number}", f"{number:032x}", properties={"colour": colour, "gpus": [1]})
        agent.notify("load", load=load, running=0, draining=False)
    blue = {"type": "any", "properties": {"colour": "blue"}}
    placed = [job_on(worker, blue, f"key-{i}")["agent"]["uid"] for i in range(8)]
    assert placed[:6] == ["agent-2"] * 6
    assert "agent-1" in placed
    others: list[dict[str, Any]] = [{"colour": "blue", "size": 1}, {"gpus": [True]}, {"gpus": {}}]
    for other in others:
        with pytest.raises(NotFound):
            job_on(worker, {"type": "any", "properties": other}, "more")
    with pytest.raises(NotFound, match="no connected agent has the properties"):
        job_on(worker, {"type": "any", "properties": {"colour": "green"}}, "other")
    with pytest.raises(NotFound, match="no connected agent with uid 'x', 'y'"):
        job_on(worker, {"type": "select", "uids": ["x", "y"]}, "another")


# -- dialled agents


def test_a_listening_agent_is_dialled_once_for_many_creates() -> None:
    world = World()
    worker, agent = world.worker(), world.listener()
    first = job_on(worker, ADDRESS)
    second = job_on(worker, ADDRESS, "key-2")
    assert first["sender"]["direction"] == "SERVER"
    assert first["at"]["connection"] == second["at"]["connection"] != agent.incarnation
    assert len(agent.hellos) == 1
    assert agent.hellos[0]["kind"] == "router"
    assert "secret" not in str(worker.ask("connections"))


def test_another_token_for_a_linked_address_has_to_be_accepted_by_the_agent() -> None:
    world = World()
    worker, agent = world.worker(), world.listener(tokens={"secret", "second"})
    job = job_on(worker, ADDRESS)
    assert job_on(worker, {**ADDRESS, "token": "second"}, "key-2")["at"]["connection"] == job["at"]["connection"]
    agent.tokens = {"secret"}
    with pytest.raises(Forbidden) as caught:
        job_on(worker, {**ADDRESS, "token": "third"}, "key-3")
    assert caught.value.code == "agent_refused"
    assert len(world.broker.links) == 1


def test_nobody_at_an_address_is_told_in_time_and_forgotten() -> None:
    world = World()
    worker = world.worker()
    call = worker.call("jobs.create", name="job", agent=ADDRESS, key="key-1")
    world.run(9.9)
    assert call not in worker.results
    world.run(0.3)
    assert isinstance(worker.results[call], AgentUnavailable)
    assert len(world.broker.dials) == 0


def test_an_idle_dialled_link_is_dropped_and_one_with_jobs_is_redialled() -> None:
    world = World(polling_delay=10.0)
    worker, agent = world.worker(), world.listener()
    job = job_on(worker, ADDRESS)
    world.run(30)
    assert len(world.broker.links) == 1
    path = agent.path
    assert path is not None
    world.broker.disconnected(path, world.now)
    world.settle()
    world.run(0.5)
    assert len(agent.hellos) == 2
    worker.ask("jobs.remove", **job["at"])
    world.run(10.2)
    assert agent.lost == "idle"
    assert len(world.broker.links) == len(world.broker.dials) == 0
    dials = len(world.dials)
    world.run(30)
    assert len(world.dials) == dials


def test_an_agent_linked_both_ways_shows_two_connections() -> None:
    world = World()
    worker, agent = world.worker(), world.agent()
    world.listener(incarnation=agent.incarnation)
    dialled, dialling = job_on(worker, ADDRESS), job_on(worker, BY_UID, "key-2")
    links = worker.connections()
    assert {link["uid"]: link["mode"] for link in links} == {
        dialled["at"]["connection"]: "CLIENT",
        dialling["at"]["connection"]: "SERVER",
    }
    assert {link["peer"]["auth"]["uid"] for link in links} == {"agent-1"}


def test_nothing_is_left_of_peers_that_came_and_went() -> None:
    world = World(history=10)
    worker, agent = world.worker(), world.agent()
    world.run(10)
    timers = len(world.env.timers)
    for number in range(100):
        guest = world.agent("guest", f"{number:032x}")
        job = job_on(worker, {"type": "uid", "uid": "guest"}, f"key-{number}")
        worker.call("jobs.wait", until=world.now + 100, **job["at"])
        visitor = world.worker(f"visitor-{number}")
        if number % 2:
            worker.ask("jobs.remove", **job["at"])
            guest.say(guest.session.bye("shutdown"))
        else:
            guest.change(job["uid"], state=State.RUNNING)
            visitor.call("jobs.wait", until=None, **job["at"])
        world.vanish(guest)
        world.broker.worker_died(visitor.uid, world.now)
        world.settle()
        world.run(6, step=0.5)
    assert agent.ready
    broker = world.broker
    assert (len(broker.links), len(broker.workers), len(broker.waits), broker.forwarder.pending) == (1, 1, 0, 0)
    assert len(broker.ledger.peers) <= 11
    assert len(broker.ledger.table) == 10
    assert len(world.env.switch.agents) == len(world.env.switch.workers) == 1
    assert len(broker.heartbeats) == 2
    assert len(world.env.timers) <= timers + 5
    assert broker.service.running == broker.creations.pending == 0
