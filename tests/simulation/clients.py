"""Clients of the workers, who create jobs, wait for them, give up, and remember what they were promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prouter.errors import NotFound
from prouter.fabric.calls import Result
from tests.simulation.nodes import AgentNode, WorkerNode
from tests.simulation.world import World

__all__ = ["Call", "Clients", "Job"]

_MANY = 6
"""Waits for one job: more than the broker answers in one event loop iteration."""


@dataclass(slots=True)
class Call:
    """A call to the broker.

    Attributes:
        job: the job it is about; None for a create.
        orphaned: whether its worker died or its client left before the answer.
    """

    worker: WorkerNode
    op: str
    args: dict[str, Any]
    job: Job | None = None
    id: str = ""
    result: Result | None = None
    orphaned: bool = False

    @property
    def open(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self.result is None and not self.orphaned


@dataclass(slots=True)
class Job:
    """What clients know of a job that was created for them."""

    uid: str
    connection: str
    started: bool = False
    removals: int = 0
    removed: bool = False
    of: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.of = {"connection": self.connection, "job": self.uid}


class Clients:
    """All clients of a schedule.

    Args:
        workers: workers that serve now; the list changes.
        agents: agents that exist now; the list changes.
        forgotten: uids of jobs that an agent has forgotten.

    Attributes:
        refused: names of jobs whose creation failed.
    """

    def __init__(self, world: World, workers: list[WorkerNode], agents: list[AgentNode], forgotten: set[str]) -> None:
        self.calls: list[Call] = []
        self.jobs: list[Job] = []
        self.refused: set[str] = set()
        self._world = world
        self._workers = workers
        self._agents = agents
        self._forgotten = forgotten

    def work(self) -> None:
        """Do something at random with jobs."""
        world = self._world
        chance = world.random.random()
        jobs = [job for job in self.jobs if not job.removals]
        if not jobs or chance < 0.5:
            agents = self._agents
            uid = world.random.choice(agents).uid if agents else "agent1"
            self._create(self._worker(), f"job{len(self.calls)}", uid)
        elif chance < 0.55:
            self._look(world.random.choice(self.jobs))
        elif chance < 0.8:
            job = world.random.choice(jobs)
            for _ in range(world.random.choice((1, 1, 2, _MANY))):
                self._wait(job)
        elif chance < 0.9:
            self._leave()
        elif chance < 0.96:
            job = world.random.choice(jobs)
            self._ask(self._worker(), "jobs.stop", {**job.of, "grace": 0}, job)
        else:
            self._remove(world.random.choice(jobs))

    def worker_died(self, worker: WorkerNode) -> None:
        """Give up the calls of a dead worker's clients; some of those that wanted a job ask again with the same key."""
        for call in self.calls:
            if call.worker is worker and call.open:
                call.orphaned = True
                if call.op == "jobs.create" and self._world.random.random() < 0.5:
                    self._create(self._worker(), call.args["name"], call.args["agent"]["uid"])

    def parked(self) -> list[Call]:
        """Return the waits without a reply."""
        return [call for call in self.calls if call.open and call.op == "jobs.wait"]

    def _worker(self) -> WorkerNode:
        return self._world.random.choice(self._workers)

    def _create(self, worker: WorkerNode, name: str, agent: str) -> None:
        args = {"name": name, "agent": {"type": "uid", "uid": agent}, "key": f"key-{name}"}

        def created(result: Result) -> None:
            self._world.note(f"create {name}: {result.error.detail if result.error else 'done'}")
            if result.error is not None:
                self.refused.add(name)
                return
            told = result.value["job"]
            if told["name"] != name:
                self._world.fail(f"asked for {name}, got {told['name']}")
            job = Job(told["uid"], told["path"].split("/")[2])
            self.jobs.append(job)
            if self._world.random.random() < 0.8:
                self._start(worker, job)

        self._ask(worker, "jobs.create", args, None, created)

    def _start(self, worker: WorkerNode, job: Job) -> None:
        seconds = self._world.random.choice((0.0, 0.02, 0.3, 1.0, 4.0, None))

        def started(result: Result) -> None:
            if result.error is None:
                job.started = True
                for _ in range(self._world.random.choice((1, 1, 2))):
                    self._wait(job)

        request: dict[str, Any] = {"args": ["x"], "env": {}, "seconds": seconds}
        self._ask(worker, "jobs.start", {**job.of, "request": request, "key": f"start-{job.uid}"}, job, started)

    def _wait(self, job: Job) -> None:
        world = self._world
        until = None if world.random.random() < 0.7 else world.now + world.random.uniform(0, 5)
        was_started = job.started

        def waited(result: Result) -> None:
            if result.error is not None:
                return
            ended = result.value["ended"]
            if not ended and (until is None or world.now < until):
                world.fail("a wait was answered before the job ended")
            if ended and was_started and result.value["job"]["state"] not in ("FINISHED", "CLOSED"):
                world.fail(f"a wait says that a job has ended that is {result.value['job']['state']}")
            if ended and world.random.random() < 0.3 and not job.removals and not world.calm:
                self._remove(job)

        self._ask(self._worker(), "jobs.wait", {**job.of, "until": until}, job, waited)

    def _look(self, job: Job) -> None:
        """Ask for a job: it exists until its removal is requested, and never again after that was confirmed."""
        removed = job.removed

        def seen(result: Result) -> None:
            if removed and result.error is None:
                self._world.fail(f"job {job.uid} is there again after its removal")

        self._ask(self._worker(), "jobs.info", {**job.of, "usage": self._world.random.random() < 0.5}, job, seen)

    def _leave(self) -> None:
        """Let a client disconnect that waits; preferably one whose worker has no connection to the broker."""
        waits = self.parked()
        waits = [call for call in waits if not call.worker.peer.ready] or waits
        if waits:
            call = self._world.random.choice(waits)
            call.orphaned = True
            call.worker.leave(call.id)

    def _remove(self, job: Job) -> None:
        job.removals += 1

        def removed(result: Result) -> None:
            job.removed |= result.error is None

        self._ask(self._worker(), "jobs.remove", job.of, job, removed)

    def _ask(
        self,
        worker: WorkerNode,
        op: str,
        args: dict[str, Any],
        job: Job | None,
        then: Callable[[Result], None] = lambda result: None,
    ) -> None:
        if not worker.runtime.alive:
            return
        call = Call(worker, op, args, job)
        self.calls.append(call)

        def done(result: Result) -> None:
            if call.result is not None:
                self._world.fail(f"{op} was answered twice")
            call.result = result
            self._check_error(call, result)
            then(result)

        call.id = worker.ask(op, args, done)

    def _check_error(self, call: Call, result: Result) -> None:
        error, job = result.error, call.job
        if error is None:
            return
        if "does not answer" in error.detail:
            self._world.fail(f"{call.op} was given up though the agent is there")
        own = 1 if call.op == "jobs.remove" else 0
        if isinstance(error, NotFound) and job is not None and job.uid not in self._forgotten and job.removals <= own:
            self._world.fail(f"{call.op}: {error.detail}, though nobody removed it")
