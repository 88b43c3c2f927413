"""Requests for jobs that may wait in the queue, to a broker without I/O, and what becomes of them."""

from __future__ import annotations

from typing import Any

from prouter.jobs import State
from tests.support.broker_world import Agent, Worker, World, created

__all__ = ["ANY", "ONE", "end", "info", "queued", "start", "starts"]

ANY: dict[str, Any] = {"type": "any"}
ONE = {"max": 1}


def queued(worker: Worker, key: str, timeout: float = 60.0, owner: str | None = None, **more: Any) -> dict[str, Any]:
    """Create a job that may wait; return it as `created` does."""
    args: dict[str, Any] = {"name": key, "agent": ANY, "key": key, "queue": {"timeout": timeout}, **more}
    if owner is not None:
        args["owner"] = owner
    return created(worker, worker.call("jobs.create", **args))


def start(key: str, *args: str) -> dict[str, Any]:
    """The argument by which a job that is created also starts."""
    return {"start": {"request": {"args": list(args), "env": {}}, "key": f"{key} start"}}


def info(worker: Worker, job: dict[str, Any]) -> dict[str, Any]:
    """What a client sees of a job now."""
    told: dict[str, Any] = worker.ask("jobs.info", **job["at"])["job"]
    return told


def end(agent: Agent, job: dict[str, Any], world: World) -> None:
    """Let a job end on its agent, which then tells its load."""
    agent.change(job["uid"], state=State.FINISHED, exit_code=0)
    agent.notify("load", load=0.0, running=0, draining=False, used={})
    world.run(0.2)


def starts(agent: Agent) -> list[str]:
    """Uids of the jobs that an agent was asked to start."""
    return [args["uid"] for op, args in agent.asked_for if op == "job.start"]
