"""What a broker that is killed and started again still knows."""

from __future__ import annotations

import json

import gevent

from tests.support.broker_stage import BY_UID, Stage, running_job, spawn_wait, stat
from tests.support.fabric_peers import FakeAgent, until


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
