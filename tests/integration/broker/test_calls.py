"""The broker as a process, with agents and workers on real sockets."""

from __future__ import annotations

import os
import time

import gevent
import pytest

from prouter.errors import AgentUnavailable, NotFound
from prouter.transport.backoff import Backoff
from tests.support.broker_stage import BY_UID, Stage, running_job, spawn_wait, stat
from tests.support.fabric_peers import until


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
        "version": answer["version"],
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
