"""One life of the whole: random work and random misfortune, then quiet, then everything has to add up."""

from __future__ import annotations

from functools import partial
from typing import Any

from prouter.fabric.calls import Result
from prouter.jobs import State
from tests.simulation.nodes import AgentNode, BrokerNode, WorkerNode
from tests.simulation.traffic import Echo, Talk
from tests.simulation.world import Violation, World

__all__ = ["Schedule", "run"]

_CHAOS = 4.0
"""Seconds of work and misfortune."""
_QUIET = 12.0
"""Seconds without misfortune, more than every timeout."""
_LOST = ("path_lost", "agent_gone", "worker_gone", "enough", "unknown_stream")


class Schedule:
    """See the module's docstring."""

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.world = World(seed, tracing=tracing)
        self.broker = BrokerNode(self.world)
        self.effects: list[tuple[str, str]] = []
        self.workers = [self._worker(pid) for pid in (101, 102)]
        self.agents = [self._agent(f"agent{number}", None) for number in (1, 2)]
        self.talks: list[Talk] = []
        self.asked = 0
        self.answered: dict[int, Result] = {}
        self._orphaned: set[int] = set()
        self._next_pid = 103

    def run(self) -> None:
        """Live.

        Raises:
            Violation: a promise was broken.
        """
        world = self.world
        end = world.now + _CHAOS
        world.run_until(world.now + 0.5)
        while world.now < end:
            if world.random.random() < 0.75:
                self._work()
            else:
                self._misfortune()
            world.run_until(world.now + world.random.expovariate(9))
        self._mend()
        world.run_until(world.now + _QUIET)
        self._check()

    # -- work -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        world = self.world
        worker = world.random.choice(self.workers)
        known = [connection for connection, up in worker.links.items() if up]
        if known and world.random.random() < 0.6:
            total = world.random.choice((0, 10, 900, 9000, 30000))
            self.talks.append(Talk(worker, world.random.choice(known), total, lambda talk: None))
            return
        self._create(worker)

    def _create(self, worker: WorkerNode) -> None:
        world = self.world
        name = f"job{self.asked}"
        agent = world.random.choice(self.agents).uid
        args = {"name": name, "agent": {"type": "uid", "uid": agent}, "key": f"key-{name}"}

        def created(result: Result) -> None:
            world.note(f"create {name}: {result.error.detail if result.error else 'done'}")
            if result.error is None:
                job = result.value["job"]
                if job["name"] != name:
                    world.fail(f"asked for {name}, got {job['name']}")
                self._start(worker, job["path"].split("/")[2], job["uid"])

        self._ask(worker, "jobs.create", args, created)

    def _start(self, worker: WorkerNode, connection: str, job: str) -> None:
        of = {"connection": connection, "job": job}

        def started(result: Result) -> None:
            if result.error is None:
                self._ask(worker, "jobs.wait", {**of, "until": None}, waited)

        def waited(result: Result) -> None:
            if result.error is None and not result.value["ended"]:
                self.world.fail("a wait was answered before the job ended")
            if self.world.random.random() < 0.5:
                self._ask(worker, "jobs.remove", of, lambda result: None)

        self._ask(worker, "jobs.start", {**of, "request": {"args": ["x"], "env": {}}, "key": f"start-{job}"}, started)

    def _ask(self, worker: WorkerNode, op: str, args: dict[str, Any], then: Any) -> None:
        if not worker.runtime.alive:
            return
        number = self.asked
        self.asked += 1

        def done(result: Result) -> None:
            if number in self.answered:
                self.world.fail(f"{op} was answered twice")
            self.answered[number] = result
            then(result)

        worker.asked.add(number)
        worker.ask(op, args, done)

    # -- misfortune -----------------------------------------------------------------------------------------------

    def _misfortune(self) -> None:
        world = self.world
        everybody = [*self.workers, *self.agents]
        kind = world.random.choice(("reset", "reset", "drop", "stall", "broker", "worker", "agent", "kept", "clock"))
        world.note(f"misfortune: {kind}")
        if kind in ("reset", "drop", "stall"):
            node = world.random.choice(everybody)
            if node.wire is None:
                return
            if kind == "stall":
                node.wire.stall(world.random.choice((0.2, 2.0, 5.5)))
            else:
                seen = kind == "reset"
                node.wire.cut(noticed_by_broker=seen or world.random.random() < 0.3, noticed_by_dialler=seen)
        elif kind == "broker" and self.broker.up:
            self.broker.crash()
            world.after(world.random.uniform(0.05, 2.0), self._broker_back)
        elif kind == "worker":
            self._replace_worker(world.random.randrange(len(self.workers)))
        elif kind in ("agent", "kept"):
            self._replace_agent(world.random.randrange(len(self.agents)), keep=kind == "kept")
        elif kind == "clock":
            world.wall_offset += world.random.choice((-3600.0, -1.0, 5.0, 86400.0))

    def _broker_back(self) -> None:
        if not self.broker.up:
            self.broker.start()

    def _replace_worker(self, index: int) -> None:
        old = self.workers[index]
        old.crash()
        self._orphaned |= old.asked
        self.workers[index] = self._worker(self._next_pid)
        self._next_pid += 1

    def _replace_agent(self, index: int, *, keep: bool) -> None:
        old = self.agents[index]
        old.crash()
        self.agents[index] = fresh = self._agent(old.uid, old if keep else None)
        for uid, record in fresh.jobs.items():
            if record.state is State.RUNNING:
                fresh.runtime.after(self.world.random.uniform(0.1, 4), partial(fresh.finish, uid))

    def _worker(self, pid: int) -> WorkerNode:
        return WorkerNode(self.world, self.broker, pid)

    def _agent(self, uid: str, before: AgentNode | None) -> AgentNode:
        def serve(agent: AgentNode, stream: Any, target: dict[str, Any]) -> None:
            Echo(agent, stream, target)

        return AgentNode(self.world, self.broker, uid, self.effects, serve, before)

    # -- the end --------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        self.world.note("quiet from here")
        self._broker_back()

    def _check(self) -> None:
        if self.world.broken:
            raise Violation(self.world.broken[0])
        self._check_linked()
        self._check_streams()
        self._check_calls()
        self._check_jobs()

    def _check_linked(self) -> None:
        for node in (*self.workers, *self.agents):
            if not node.peer.ready:
                raise Violation(f"{node.kind} {node.uid} is not linked in the end")
        if self.broker.failures:
            raise Violation(f"malformed: {self.broker.failures}")
        counts = self.broker.env.counts
        if counts["malformed"] or counts["failures"]:
            raise Violation(f"the broker counts {dict(counts)}")

    def _check_streams(self) -> None:
        for talk in self.talks:
            if not talk.worker.runtime.alive:
                continue
            if talk.reset_code is None and not talk.whole:
                raise Violation(f"a stream neither whole nor reset: {talk.received} of {talk.total}")
            if talk.reset_code is not None and talk.reset_code not in _LOST:
                raise Violation(f"a stream was reset with {talk.reset_code}")
        for node in (*self.workers, *self.agents):
            for mux in node.peer.muxes.values():
                if mux.streams:
                    raise Violation(f"{node.kind} still knows {len(mux.streams)} streams")

    def _check_calls(self) -> None:
        unanswered = set(range(self.asked)) - set(self.answered) - self._orphaned
        if unanswered:
            raise Violation(f"calls without an answer: {sorted(unanswered)}")
        if self.broker.core.service.running:
            raise Violation(f"the broker still carries out {self.broker.core.service.running} calls")

    def _check_jobs(self) -> None:
        if len(self.effects) != len(set(self.effects)):
            doubled = sorted({effect for effect in self.effects if self.effects.count(effect) > 1})
            raise Violation(f"done more than once: {doubled}")
        names = [record.name for agent in self.agents for record in agent.jobs.values()]
        if len(names) != len(set(names)):
            raise Violation("a job was created twice")
        ledger = self.broker.core.ledger
        for agent in self.agents:
            for uid, record in agent.jobs.items():
                entry = ledger.table.get(uid)
                if entry is None or entry.record.state is not record.state:
                    told = None if entry is None else entry.record.state
                    raise Violation(f"job {uid} is {record.state}, the table says {told}")
        alive = {uid for agent in self.agents for uid in agent.jobs}
        running = [entry.uid for entry in ledger.table if not entry.ended]
        strangers = set(running) - alive
        if strangers:
            raise Violation(f"the table has jobs nobody runs: {sorted(strangers)}")


def run(seed: int, *, tracing: bool = False) -> Schedule:
    """Live through the schedule of a seed.

    Raises:
        Violation: a promise was broken.
    """
    schedule = Schedule(seed, tracing=tracing)
    schedule.run()
    return schedule
