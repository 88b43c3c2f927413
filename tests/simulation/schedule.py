"""One schedule: random work and random faults, then quiet, then the checks."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

from prouter.fabric import frames as messages
from prouter.fabric import stream as streams
from prouter.jobs import State
from tests.simulation import checks
from tests.simulation.clients import Clients
from tests.simulation.nodes import AgentNode, WorkerNode
from tests.simulation.router import BrokerNode
from tests.simulation.traffic import Echo, Talk
from tests.simulation.world import World

__all__ = ["Schedule", "run"]

_CHAOS = 4.0
"""Seconds of work and faults."""
_QUIET = 12.0
"""Seconds without faults, longer than every timeout."""
_REST = 1.5
"""Seconds in which everything that was ended in the quiet disappears."""
_SLOW_PIECE = 700
"""Bytes of a frame that is resent: few, so that pieces are cut."""
_MESSAGE = 2000
"""Bytes of a message with several frames: few, so that a part of what is sent at once is lost."""


class Schedule:
    """One schedule; its seed determines everything in it.

    Attributes:
        agents: agents that exist, or will come back.
        forgotten: uids of jobs that an agent has forgotten.
    """

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.world = World(seed, tracing=tracing)
        self.broker = BrokerNode(self.world)
        self.effects: list[tuple[str, str]] = []
        self.workers = [self._worker(pid) for pid in (101, 102)]
        self.agents = [self._agent(f"agent{number}", None) for number in (1, 2)]
        self.forgotten: set[str] = set()
        self.clients = Clients(self.world, self.workers, self.agents, self.forgotten)
        self.talks: list[Talk] = []
        self._next_pid = 103

    def run(self) -> None:
        """Run the schedule.

        Raises:
            Violation: a promise was broken.
        """
        small_frames = mock.patch.object(streams, "_SLOW_PIECE", _SLOW_PIECE)
        with small_frames, mock.patch.object(messages, "_MESSAGE_BYTES", _MESSAGE):
            self._live()

    def _live(self) -> None:
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
        checks.settled(self)
        self._end()
        world.run_until(world.now + _REST)
        checks.over(self)

    # -- work -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        world = self.world
        worker = world.random.choice(self.workers)
        known = [connection for connection, up in worker.links.items() if up]
        if known and world.random.random() < 0.4:
            total = world.random.choice((0, 10, 900, 9000, 30000))
            self.talks.append(Talk(worker, world.random.choice(known), total))
        else:
            self.clients.work()

    # -- faults ---------------------------------------------------------------------------------------------------

    def _misfortune(self) -> None:
        world = self.world
        everybody = [*self.workers, *self.agents]
        kind = world.random.choice(_MISFORTUNES)
        world.note(f"misfortune: {kind}")
        if kind in ("reset", "drop", "stall", "apart"):
            node = world.random.choice(everybody)
            if node.wire is None:
                return
            if kind == "stall":
                node.wire.stall(world.random.choice((0.2, 2.0, 5.5)))
                return
            if kind == "apart":
                node.apart_until = world.now + world.random.uniform(0.5, 4)
            seen = kind != "drop"
            node.wire.cut(noticed_by_broker=seen or world.random.random() < 0.3, noticed_by_dialler=seen)
        elif kind == "broker" and self.broker.up:
            self.broker.crash()
            world.after(world.random.uniform(0.05, 2.0), self._broker_back)
        elif kind == "worker":
            self._replace_worker(world.random.randrange(len(self.workers)))
        elif kind in ("agent", "kept", "forgets", "late", "never") and self.agents:
            self._replace_agent(world.random.choice(self.agents), kind)
        elif kind == "clock":
            world.wall_offset += world.random.choice((-3600.0, -1.0, 5.0, 86400.0))

    def _broker_back(self) -> None:
        if not self.broker.up:
            self.broker.start()

    def _replace_worker(self, index: int) -> None:
        old = self.workers[index]
        old.crash()
        self.workers[index] = self._worker(self._next_pid)
        self._next_pid += 1
        self.clients.worker_died(old)

    def _replace_agent(self, old: AgentNode, kind: str) -> None:
        old.crash(noticed=self.world.random.random() < 0.7)
        self.agents.remove(old)
        if kind == "never" and self.world.random.random() < 0.2:
            return
        if kind == "late":
            self.world.after(self.world.random.uniform(0.5, 4), partial(self._agent_back, old, kind))
        else:
            self._agent_back(old, kind)

    def _agent_back(self, old: AgentNode, kind: str) -> None:
        if kind == "forgets":
            self.forgotten.add(old.forget_one())
        fresh = self._agent(old.uid, old if kind in ("kept", "forgets", "late") else None)
        self.agents.append(fresh)
        for uid, record in fresh.jobs.items():
            if record.state is State.RUNNING and uid not in fresh.endless:
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
        self.world.calm = True
        self._broker_back()

    def _end(self) -> None:
        """End everything that lasts; keepers of agents that never came back send their death notices."""
        self.world.note("the end")
        core = self.broker.core
        for link in [link for link in core.links if not link.up]:
            self.broker.turn(partial(core.admission._agent_died, link.info.uid, link.info.incarnation))
        for talk in self.talks:
            if talk.lingers and talk.worker.runtime.alive:
                talk.release()
        for agent in self.agents:
            for uid in list(agent.jobs):
                agent.finish(uid)


_MISFORTUNES = (
    *("reset", "reset", "drop", "stall", "apart", "broker", "broker", "worker"),
    *("agent", "kept", "late", "forgets", "never", "clock"),
)


def run(seed: int, *, tracing: bool = False) -> Schedule:
    """Run the schedule of a seed.

    Raises:
        Violation: a promise was broken.
    """
    schedule = Schedule(seed, tracing=tracing)
    schedule.run()
    return schedule
