"""Agents and workers whose links to the broker come, go and are refused."""

from __future__ import annotations

import subprocess
import time
import uuid

import pytest

from prouter.errors import Forbidden, NotFound
from prouter.fabric.frames import HELLO, Frame, encode, pack_body
from prouter.transport.dealer import DealerSocket
from tests.support.broker_stage import BY_UID, Stage, running_job, spawn_wait, stat
from tests.support.fabric_peers import until


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
    until(lambda: doomed.uid.encode() not in agent.peer.muxes, 1)  # It is told before it is forgotten.


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


def test_a_dialled_agent_that_restarts_as_a_new_one_keeps_its_new_connection(stage: Stage) -> None:
    broker = stage.broker()
    worker = stage.worker(broker)
    agent, selector = stage.listener()
    agent.accepts = {"secret"}
    lost = running_job(worker, selector)
    agent.vanish()
    until(lambda: worker.of("link.down"))
    back, _ = stage.listener(port=int(selector["address"].rpartition(":")[2]), incarnation="b" * 32)
    back.accepts = {"secret"}
    job = worker.create(selector)
    assert job["connection"] == back.connection
    assert back.creates == [job["uid"]]
    ended = worker.call("jobs.info", connection=lost["connection"], job=lost["uid"])["job"]
    assert ended["reason"] == "agent_lost"
    assert not back.losses


def test_a_challenger_that_has_left_does_not_take_the_place_of_a_frozen_agent(stage: Stage) -> None:
    broker = stage.broker()
    worker, agent = stage.worker(broker), stage.agent(broker)
    job = running_job(worker)
    socket = agent.dialler._socket  # type: ignore[union-attr]
    assert socket is not None
    hears, socket._on_message = socket._on_message, lambda parts: None
    challenger = stage.stranger(broker, incarnation=agent.incarnation)
    until(lambda: "event=link_challenged" in broker.log.read_text())
    asked = time.monotonic()
    challenger.vanish()
    until(lambda: time.monotonic() > asked + 1.5, what="the rival's time is over")
    socket._on_message = hears
    assert worker.call("jobs.info", connection=job["connection"], job=job["uid"])["job"]["state"] == "RUNNING"
    assert worker.create(BY_UID)["connection"] == agent.connection
    assert not worker.of("link.down")
    assert not challenger.welcomes
