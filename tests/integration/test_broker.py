"""The broker as a process, with agents and workers on real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import zmq

from prouter.errors import AgentUnavailable, Forbidden, NotFound
from prouter.fabric.frames import HELLO, PING, Frame, encode, pack_body
from prouter.transport.backoff import Backoff
from prouter.transport.dealer import DealerSocket
from tests.support.fabric_peers import BrokerProcess, FakeAgent, FakeWorker, until

BY_UID = {"type": "uid", "uid": "agent-1"}


class Stage:
    """A broker, and whoever is to be stopped after the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stops: list[Callable[[], Any]] = []

    def broker(self, **sets: Any) -> BrokerProcess:
        process = BrokerProcess(self.directory, **sets)
        self._stops.append(process.stop)
        return process

    def worker(self, broker: BrokerProcess, pid: int | None = None) -> FakeWorker:
        worker = FakeWorker(broker.ipc, pid)
        self._stops.append(worker.stop)
        return worker

    def agent(self, broker: BrokerProcess, uid: str = "agent-1", **options: Any) -> FakeAgent:
        agent = self.stranger(broker, uid, **options)
        until(lambda: agent.welcomes, what="agent is welcomed")
        return agent

    def stranger(self, broker: BrokerProcess, uid: str = "agent-1", **options: Any) -> FakeAgent:
        agent = FakeAgent(uid, **options)
        self._stops.append(agent.stop)
        return agent.dial(broker.endpoint)

    def listener(self, uid: str = "agent-1", port: int = 0, **options: Any) -> tuple[FakeAgent, dict[str, Any]]:
        agent = FakeAgent(uid, **options)
        self._stops.append(agent.stop)
        address = f"127.0.0.1:{agent.listen(port)}"
        return agent, {"type": "address", "address": address, "token": "secret"}

    def clear(self) -> None:
        for stop in reversed(self._stops):
            stop()


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="prb-"))
    stage = Stage(directory)
    try:
        yield stage
    finally:
        stage.clear()
        print((directory / "broker.log").read_text())
        shutil.rmtree(directory, ignore_errors=True)


def running_job(worker: FakeWorker, agent: dict[str, Any] | None = None) -> dict[str, Any]:
    job = worker.create(agent or BY_UID)
    worker.call("jobs.start", connection=job["connection"], job=job["uid"], request={"args": []}, key=job["uid"])
    return job


def spawn_wait(worker: FakeWorker, job: dict[str, Any], until: float | None = None, call_id: str | None = None) -> Any:
    return gevent.spawn(
        worker.peer.call,
        "jobs.wait",
        {"connection": job["connection"], "job": job["uid"], "until": until},
        timeout=20,
        call_id=call_id,
    )


def stat(worker: FakeWorker, name: str) -> float:
    return float(worker.call("stats")["metrics"].get(name, 0))


def test_a_job_is_created_started_waited_for_and_removed(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    assert job["state"] == "NEW"
    assert job["agent"]["uid"] == "agent-1"
    assert job["sender"] == {"direction": "CLIENT", "uid": "router-1", "name": "test router"}
    assert job["path"] == f"/jobs/{agent.connection}/{job['uid']}"
    wait = spawn_wait(worker, job)
    until(lambda: stat(worker, "waits") == 1)
    agent.end(job["uid"])
    answer = wait.get(timeout=5)
    assert answer["ended"]
    assert answer["job"]["state"] == "FINISHED"
    assert answer["job"]["finished_at"].endswith("Z")
    removed = worker.call("jobs.remove", connection=job["connection"], job=job["uid"])["job"]
    assert removed["state"] == "FINISHED"
    assert agent.removed == [job["uid"]]
    with pytest.raises(NotFound, match=f"job '{job['uid']}' is not found"):
        worker.call("jobs.info", connection=job["connection"], job=job["uid"])
    assert worker.call("jobs.route", connection=job["connection"], job=job["uid"])["record"]["state"] == "CLOSED"
    with pytest.raises(NotFound, match="connection 'nope' is not found"):
        worker.call("jobs.info", connection="nope", job=job["uid"])


def test_workers_hear_of_links_and_jobs_in_the_order_of_ids(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    agent = stage.agent(broker)
    job = running_job(worker)
    agent.end(job["uid"])
    states = until(lambda: [e["record"]["state"] for e in worker.of("job")][2:] and worker.of("job"))
    assert [event["record"]["state"] for event in states] == ["NEW", "RUNNING", "FINISHED"]
    assert worker.of("link.up")[0]["agent"] == {"uid": "agent-1", "name": "name of agent-1"}
    feed = worker.call("events", after=None, limit=100)
    ids = [event["id"] for event in feed["events"]]
    assert ids == sorted(ids)
    assert feed["last"] == ids[-1]
    assert feed["first"] == ids[0]
    assert [event["name"] for event in feed["events"]] == ["agent", "job", "job", "job"]
    assert [e["id"] for e in worker.call("events", after=ids[1], limit=1)["events"]] == [ids[2]]


def test_streams_pass_both_ways_and_only_to_their_peers(stage: Stage) -> None:
    broker = stage.broker()
    worker, other = stage.worker(broker), stage.worker(broker)
    agent = stage.agent(broker)
    until(lambda: len(agent.peer.muxes) == 2)
    data = os.urandom(3_000_000)
    echo = worker.echo(agent.connection)
    second = other.echo(agent.connection, b"mine")
    rest = data
    while rest:
        taken = echo.stream.write(rest[:200_000])
        rest = rest[taken:]
        if not taken:
            echo.writable = False
            until(lambda: echo.writable)
    echo.stream.close()
    until(lambda: echo.stream.closed)
    assert bytes(echo.data) == data
    assert bytes(second.data) == b"mine"


def test_a_token_that_is_not_accepted_is_refused(stage: Stage) -> None:
    broker = stage.broker(server__accept_tokens=["good", "better"])
    stage.agent(broker, "agent-2", token="better")
    stranger = stage.stranger(broker, token="bad")
    until(lambda: stranger.refusals)
    assert stranger.refusals[0][0] == "bad_token"
    assert not stranger.welcomes
    assert "better" not in broker.log.read_text()
    assert "'bad'" not in broker.log.read_text()


def test_a_second_agent_with_the_uid_of_a_living_one_is_refused(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    rival = stage.stranger(broker)
    until(lambda: rival.refusals)
    assert rival.refusals[0] == ("uid_in_use", "an agent with uid 'agent-1' is already linked and alive")
    assert not worker.of("link.down")
    assert agent.peer.ready


def test_a_new_incarnation_takes_over_when_the_old_one_is_dead(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    wait = spawn_wait(worker, job)
    until(lambda: stat(worker, "waits") == 1)
    agent.vanish()
    rival = stage.agent(broker)
    answer = wait.get(timeout=5)
    assert answer["job"]["state"] == "FINISHED"
    assert answer["job"]["reason"] == "agent_lost"
    until(lambda: len(worker.of("link.up")) == 2)
    assert worker.of("link.down")[-1]["gone"]
    assert worker.of("link.down")[-1]["connection"] == agent.connection
    assert worker.create(BY_UID)["connection"] == rival.connection


def test_an_agent_that_is_frozen_loses_its_uid_within_seconds(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker)
    agent.dialler._socket._on_message = lambda parts: None  # type: ignore[union-attr]
    started = time.monotonic()
    stage.agent(broker)
    assert 0.5 < time.monotonic() - started < 4


def test_an_agent_that_comes_back_keeps_its_connection_and_jobs(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    echo = worker.echo(agent.connection, b"one ")
    until(lambda: echo.data == b"one ")
    agent.peer.lose("cut")
    until(lambda: len(worker.of("link.up")) == 2)
    echo.stream.write(b"two")
    until(lambda: echo.data == b"one two")
    assert not any(event["gone"] for event in worker.of("link.down"))
    assert worker.call("jobs.info", connection=job["connection"], job=job["uid"])["job"]["state"] == "RUNNING"


def test_an_agent_whose_connection_closed_for_good_ends_its_jobs(stage: Stage) -> None:
    broker = stage.broker(fabric__resume_timeout=2.0)
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    wait = spawn_wait(worker, job)
    until(lambda: stat(worker, "waits") == 1)
    agent.vanish()
    until(lambda: worker.of("link.down"), 1)
    answer = wait.get(timeout=9)
    assert answer["job"]["reason"] == "agent_lost"
    assert worker.connections() == []
    removed = worker.call("jobs.remove", connection=job["connection"], job=job["uid"])["job"]
    assert removed["reason"] == "agent_lost"
    with pytest.raises(NotFound, match="no connected agent with uid 'agent-1'"):
        worker.create(BY_UID)


def test_an_agent_that_says_goodbye_is_gone_at_once(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    until(lambda: worker.of("link.up"))
    agent.stop()
    until(lambda: [event for event in worker.of("link.down") if event["gone"]], 4)


def test_the_state_survives_kill_and_restart(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job, finished = running_job(worker), running_job(worker)
    agent.end(finished["uid"])
    until(lambda: len(worker.of("job")) == 5)
    last_event = worker.of("job")[-1]["id"]
    echo = worker.echo(agent.connection, b"before ")
    until(lambda: echo.data == b"before ")
    wait = spawn_wait(worker, job)
    until(lambda: stat(worker, "waits") == 1)
    broker.kill()
    echo.stream.write(b"while away ")
    broker.start()
    until(lambda: len(worker.welcomes) == 2 and len(agent.welcomes) == 2, 3)
    echo.stream.write(b"after")
    until(lambda: echo.data == b"before while away after")
    listed = {info["uid"]: info["state"] for info in json.loads(b"[%b]" % worker.call("jobs.list")["jobs"])}
    assert listed == {job["uid"]: "RUNNING", finished["uid"]: "FINISHED"}
    info = until(
        lambda: (i := worker.call("jobs.info", connection=job["connection"], job=job["uid"])["job"])["confirmed"] and i
    )
    assert info["path"] == job["path"]
    assert info["agent"] == job["agent"]
    agent.end(job["uid"])
    assert wait.get(timeout=5)["ended"], "the wait was repeated to the new broker"
    assert until(lambda: worker.of("job")[5:])[0]["id"] > last_event


def test_jobs_are_unconfirmed_until_their_agent_is_back(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    until(lambda: len(worker.of("job")) == 2)
    worker.create(BY_UID)  # answered only after everything before it is written down
    agent.vanish()
    broker.kill()
    broker.start()
    until(lambda: len(worker.welcomes) == 2)
    info = worker.call("jobs.info", connection=job["connection"], job=job["uid"], usage=True)["job"]
    assert info["state"] == "RUNNING"
    assert not info["confirmed"]
    back = FakeAgent(incarnation=agent.incarnation)
    back.jobs = dict(agent.jobs)
    back.dial(broker.endpoint)
    try:
        query = {"connection": job["connection"], "job": job["uid"]}
        until(lambda: worker.call("jobs.info", **query)["job"]["confirmed"])
    finally:
        back.stop()


def test_a_job_its_agent_does_not_announce_is_lost(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    until(lambda: len(worker.of("job")) == 2)
    agent.jobs.clear()
    agent.peer.lose("cut")
    lost = until(lambda: worker.of("job")[2:])[0]["record"]
    assert (lost["uid"], lost["state"], lost["reason"]) == (job["uid"], "FINISHED", "agent_lost")


def test_a_create_with_the_same_key_gives_the_same_job_over_a_restart(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = worker.create(BY_UID, key="key-1")
    assert worker.create(BY_UID, key="key-1")["uid"] == job["uid"]
    broker.kill()
    broker.start()
    assert worker.create(BY_UID, key="key-1")["uid"] == job["uid"]
    assert list(agent.jobs) == [job["uid"]]
    assert set(agent.creates) == {job["uid"]}


def test_a_create_in_flight_while_the_broker_dies_happens_once(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    agent.delay["job.create"] = gevent.event.Event()
    creating = gevent.spawn(worker.create, BY_UID, "key-1")
    until(lambda: "job.create" in agent.calls)
    broker.kill()
    agent.delay.pop("job.create").set()
    broker.start()
    job = creating.get(timeout=10)
    assert set(agent.creates) == {job["uid"]}
    assert list(agent.jobs) == [job["uid"]]


def test_a_removal_the_agent_told_of_is_answered_although_the_broker_died(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = worker.create(BY_UID)
    agent.delay["job.remove"] = gevent.event.Event()
    removing = gevent.spawn(worker.call, "jobs.remove", connection=job["connection"], job=job["uid"])
    until(lambda: "job.remove" in agent.calls)
    agent.peer.notify("job.removed", {"record": agent.jobs[job["uid"]].to_wire()})
    until(lambda: worker.of("job.removed"))
    broker.kill()
    agent.delay.pop("job.remove").set()
    broker.start()
    assert removing.get(timeout=10)["job"]["state"] == "NEW"


def test_calls_wait_for_an_agent_that_is_away_and_then_give_up(stage: Stage) -> None:
    broker = stage.broker(control__hold=1.0)
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = worker.create(BY_UID)
    dialler = agent.dialler
    assert dialler is not None
    dialler.backoff = Backoff(1.5, 1.5, uniform=lambda shortest, longest: longest)
    agent.peer.lose("cut")
    until(lambda: worker.of("link.down"))
    with pytest.raises(AgentUnavailable) as caught:
        worker.call("jobs.start", connection=job["connection"], job=job["uid"], request={}, key="k")
    assert caught.value.retry_after
    dialler.backoff = Backoff(0.05, 0.05)
    assert worker.call("jobs.start", connection=job["connection"], job=job["uid"], request={}, key="k")["job"]
    agent.peer.lose("cut again")
    until(lambda: len(worker.of("link.down")) == 2)
    assert worker.create(BY_UID)["agent"]["uid"] == "agent-1"


def test_waits_end_by_timeout_and_can_be_cancelled(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    stage.agent(broker)
    job = running_job(worker)
    answer = spawn_wait(worker, job, until=time.monotonic() + 0.2).get(timeout=5)
    assert not answer["ended"]
    assert answer["job"]["state"] == "RUNNING"
    spawn_wait(worker, job, call_id="wait-1")
    until(lambda: stat(worker, "waits") == 1)
    worker.peer.notify("wait.cancel", {"id": "wait-1"})
    until(lambda: stat(worker, "waits") == 0)
    assert stat(worker, "calls") == 1


def test_a_worker_that_is_killed_is_gone_for_agents_at_once(stage: Stage) -> None:
    broker = stage.broker()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        doomed = stage.worker(broker, pid=sleeper.pid)
        agent = stage.agent(broker)
        echo = doomed.echo(agent.connection, b"x")
        until(lambda: echo.data == b"x")
    finally:
        sleeper.kill()
        sleeper.wait()
    until(lambda: ("worker.down", {"worker": doomed.uid}) in agent.events, 1)
    assert doomed.uid.encode() not in agent.peer.muxes


def test_a_connection_that_never_introduces_itself_is_ended_and_linked_agents_stay(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    silent = context.socket(zmq.DEALER)
    silent.setsockopt(zmq.RECONNECT_IVL, -1)
    silent.setsockopt(zmq.LINGER, 0)
    silent.connect(broker.endpoint)
    try:
        until(lambda: stat(worker, "strangers") == 1, what="it is noticed")
        until(lambda: stat(worker, "total.strangers_cut") == 1, 20, what="it is ended")
        assert stat(worker, "strangers") == 0
        assert stat(worker, "links.up") == 1
        assert agent.peer.ready
    finally:
        silent.close()
        context.term()


def test_a_silent_agents_connection_is_closed_so_that_it_dials_again(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    hello = {**agent.introduction(), "uid": "silent", "incarnation": uuid.uuid4().hex, "token": "", "protocol": 1}
    received: list[list[bytes]] = []
    losses: list[float] = []
    silent = DealerSocket(broker.endpoint, received.append, lambda reason: losses.append(time.monotonic()), b"silent:1")
    try:
        silent.send([b"", *encode([Frame(HELLO, payload=pack_body(hello))])])
        until(lambda: received, what="it is welcomed")
        until(lambda: losses, 15, what="it is given up")
        assert agent.peer.ready
        assert stat(worker, "links.up") == 1
    finally:
        silent.close()


NONSENSE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"", b"x"],
    [b"", b"\x01" * 33],
    [b"", b"\0" * 32, b"extra"],
    [b"route", b"payload"],
    [b"", *encode([Frame(PING)])],
    [b"", *encode([Frame(HELLO, payload=b"\xc1")])],
    [b"", os.urandom(500_000)],
    [b"", *encode([Frame(HELLO, payload=pack_body({"kind": "agent", "protocol": 1}))] * 1000)],
]


def test_a_stranger_that_says_anything_but_hello_is_cut_off(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    for parts in NONSENSE:
        losses: list[str] = []
        stranger = DealerSocket(broker.endpoint, lambda parts: None, losses.append, b"odd")
        stranger.send(parts)
        until(lambda losses=losses: losses, what=f"{parts!r:.40} is cut off")  # type: ignore[misc]
        stranger.close()
    assert agent.peer.ready
    assert worker.create(BY_UID)
    assert stat(worker, "strangers") == 0
    assert broker.log.read_text().count("event=malformed_message") == 1


def test_malformed_messages_of_an_agent_are_counted_and_harmless(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    socket = agent.dialler._socket  # type: ignore[union-attr]
    assert socket is not None
    for parts in (
        [b"", os.urandom(100)],
        [b"", *encode([Frame(99)])],
        [b"", *encode([Frame(16, payload=b"\xc1")])],
    ):
        for _ in range(50):
            socket.send(parts)
    until(lambda: stat(worker, "total.malformed") >= 100)
    assert agent.peer.ready
    assert worker.create(BY_UID)
    assert broker.log.read_text().count("event=malformed_message") == 1


def test_a_stranger_that_floods_keeps_nobody_from_linking(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    flood = context.socket(zmq.DEALER)
    flood.setsockopt(zmq.LINGER, 0)
    flood.setsockopt(zmq.RECONNECT_IVL, 1)
    flood.connect(broker.endpoint)
    stopped = gevent.event.Event()

    def send() -> None:
        while not stopped.wait(0):
            for _ in range(100):
                with contextlib.suppress(zmq.Again):
                    flood.send_multipart([b"", *encode([Frame(PING)])], zmq.NOBLOCK)

    sender = gevent.spawn(send)
    try:
        stage.agent(broker)
        until(lambda: stat(worker, "links.up") == 1)
    finally:
        stopped.set()
        sender.join(5)
        flood.close()
        context.term()


def test_an_agent_that_listens_is_dialled_and_dropped_when_idle(stage: Stage) -> None:
    broker = stage.broker(client__polling_delay=0.3)
    worker = stage.worker(broker)
    agent, selector = stage.listener()
    agent.accepts = {"secret"}
    job = running_job(worker, selector)
    assert job["connection"] != agent.incarnation
    assert job["sender"]["direction"] == "SERVER"
    listed = worker.connections()
    assert [link["mode"] for link in listed] == ["CLIENT"]
    assert "secret" not in str(listed)
    echo = worker.echo(job["connection"], b"hello")
    until(lambda: echo.data == b"hello")
    second = worker.create(selector)
    assert second["connection"] == job["connection"]
    assert len(agent.greeted) == 1
    for uid in (job["uid"], second["uid"]):
        worker.call("jobs.remove", connection=job["connection"], job=uid)
    until(lambda: not worker.connections())
    until(lambda: agent.losses)


def test_a_wrong_token_is_refused_even_where_a_link_exists(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    agent, selector = stage.listener()
    agent.accepts = {"secret"}
    with pytest.raises(Forbidden) as caught:
        worker.create({**selector, "token": "wrong"})
    assert caught.value.code == "agent_refused"
    job = running_job(worker, selector)
    with pytest.raises(Forbidden):
        worker.create({**selector, "token": "wrong"})
    assert worker.call("jobs.info", connection=job["connection"], job=job["uid"])["job"]["state"] == "RUNNING"
    text = broker.log.read_text()
    assert "secret" not in text
    assert "wrong" not in text


def test_a_dialled_agent_with_jobs_is_dialled_again(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    agent, selector = stage.listener()
    agent.accepts = {"secret"}
    job = running_job(worker, selector)
    port = int(selector["address"].rpartition(":")[2])
    agent.vanish()
    until(lambda: worker.of("link.down"))
    back, _ = stage.listener(port=port, incarnation=agent.incarnation)
    back.accepts, back.jobs = {"secret"}, dict(agent.jobs)
    until(lambda: len(worker.of("link.up")) == 2)
    broker.kill()
    broker.start()
    until(lambda: len(back.greeted) == 2, what="it is dialled by the restarted broker")
    until(lambda: worker.call("jobs.info", connection=job["connection"], job=job["uid"])["job"]["confirmed"])


def test_draining_agents_get_no_new_jobs(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    stage.agent(broker)
    first = stage.agent(broker, "agent-0")
    worker.call("agents.drain", connection=first.connection, on=True)
    assert [event["change"] for event in worker.of("agent")][-1] == "draining"
    assert {worker.create({"type": "any"})["agent"]["uid"] for _ in range(3)} == {"agent-1"}
    with pytest.raises(AgentUnavailable, match="draining"):
        worker.create({"type": "uid", "uid": "agent-0"})
    worker.call("agents.drain", connection=first.connection, on=False)
    assert worker.create({"type": "uid", "uid": "agent-0"})


def test_jobs_spread_over_agents(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    uids = ["agent-1", "agent-2", "agent-3"]
    for uid in uids:
        stage.agent(broker, uid)
    placed = [worker.create({"type": "select", "uids": uids})["agent"]["uid"] for _ in range(6)]
    assert sorted(placed) == sorted(uids * 2)


def test_connections_answer_unchanged_for_the_same_etag(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    stage.agent(broker)
    answer = worker.call("connections")
    assert worker.connections()[0]["up"]
    assert worker.call("connections", etag=answer["etag"]) == {
        "unchanged": True,
        "etag": answer["etag"],
    }
    stage.agent(broker, "agent-2")
    assert len(worker.connections(etag=answer["etag"])) == 2


def test_the_broker_ends_cleanly_on_a_signal_and_on_request(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    assert broker.terminate() == 0
    until(lambda: worker.losses and agent.losses)
    broker.start()
    assert worker.call("shutdown") == {}
    assert broker.process.wait(5) == 0


def test_an_idle_broker_uses_no_cpu(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    stage.agent(broker)
    stage.agent(broker, "agent-2").vanish()
    until(lambda: worker.of("link.down"))
    before = broker.cpu_seconds()
    gevent.sleep(1.5)
    assert broker.cpu_seconds() - before <= 0.05
