"""A broker as a process, and the agents and workers of one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from tests.support.fabric_peers import BrokerProcess, FakeAgent, FakeWorker, until

__all__ = ["BY_UID", "Stage", "running_job", "spawn_wait", "stat"]

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


def running_job(worker: FakeWorker, agent: dict[str, Any] | None = None) -> dict[str, Any]:
    """Have a worker create and start a job; return it."""
    job = worker.create(agent or BY_UID)
    worker.call("jobs.start", connection=job["connection"], job=job["uid"], request={"args": []}, key=job["uid"])
    return job


def spawn_wait(worker: FakeWorker, job: dict[str, Any], until: float | None = None, call_id: str | None = None) -> Any:
    """Wait for a job in a greenlet, and return that."""
    return gevent.spawn(
        worker.peer.call,
        "jobs.wait",
        {"connection": job["connection"], "job": job["uid"], "until": until},
        timeout=20,
        call_id=call_id,
    )


def stat(worker: FakeWorker, name: str) -> float:
    """Return one of the broker's metrics, 0 if it has none of this name."""
    return float(worker.call("stats")["metrics"].get(name, 0))
