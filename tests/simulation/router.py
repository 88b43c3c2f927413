"""The broker's process in the simulation: the real core with virtual sockets and a virtual clock."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.base.security import PLAIN, Security
from prouter.broker.base.settings import Bounds, Settings
from prouter.broker.base.switch import Path
from prouter.broker.core import Broker
from prouter.broker.store.opening import read_store
from prouter.broker.store.restore import Saved
from prouter.errors import ProtocolError
from prouter.fabric.frames import decode, encode
from prouter.process.shared_version import UNKNOWN
from tests.simulation.world import Message, Runtime, Wire, World

__all__ = ["HEARTBEAT", "RESUME_TIMEOUT", "BrokerNode"]

HEARTBEAT = 1.0
RESUME_TIMEOUT = 5.0
_SETTINGS = Settings(
    uid="router",
    name="simulated",
    heartbeat=HEARTBEAT,
    worker_heartbeat=HEARTBEAT,
    hold=3.0,
    resume_timeout=RESUME_TIMEOUT,
    takeover_patience=0.3,
    return_patience=1.5,
    workers_return=1.0,
    bounds=Bounds(iteration=4),
)


class _Carrier:
    """A socket of the broker, with the peer behind each routing id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wires: dict[bytes, Wire] = {}
        self.paths: dict[bytes, Path] = {}


class _Store:
    """The broker's database, which commits a little later and in order; a crash loses what was not committed."""

    def __init__(self, broker: BrokerNode, database: sqlite3.Connection) -> None:
        self._broker = broker
        self._database = database

    def submit(
        self,
        statement: str,
        *parameters: Any,
        done: Callable[[float], None] | None = None,
        committed: Callable[[float], None] | None = None,
    ) -> None:
        broker = self._broker
        late = broker.world.random.uniform(0, broker.disk)
        at = broker.committed = max(broker.committed, broker.world.now + late)

        def commit() -> None:
            self._database.execute(statement, parameters)
            for call in (done, committed):
                if call is not None:
                    broker.turn(call)

        broker.runtime.after(at - broker.world.now, commit)

    def hurry(self) -> None:
        """Nothing to do: each commit is as late as its disk is slow."""


class BrokerNode:
    """The broker's process, restarted as often as needed over the same database.

    Attributes:
        disk: seconds a commit takes at most.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.disk: float = world.random.choice((0.005, 0.005, 0.05, 0.5))
        self.up = False
        self.committed = 0.0
        self.failures: list[str] = []
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self.start()

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a new process."""
        world = self.world
        self.runtime = Runtime(world)
        self._watched: dict[int, str] = {}
        self.agents, self.workers = _Carrier("agents"), _Carrier("workers")
        self._closing: list[Path] = []
        self.env = Env(
            settings=_SETTINGS,
            shell=self,
            store=_Store(self, self._database),
            wall=lambda: world.wall,
            new_uid=world.uid,
            incarnation=world.uid(),
        )
        self.core = Broker(self.env, read_store(self._database), world.now)
        self.up = True
        self._armed = float("inf")
        self.turn(lambda now: None)
        world.note("broker starts")

    def crash(self) -> None:
        """Die as by kill -9."""
        self.world.note("broker crashes")
        self.up = False
        self.runtime.alive = False
        for carrier in (self.agents, self.workers):
            for wire in list(carrier.wires.values()):
                wire.cut(noticed_by_broker=False, noticed_by_dialler=True)

    def written(self) -> Saved:
        """Return what a broker that started now would find."""
        return read_store(self._database)

    # -- wires ----------------------------------------------------------------------------------------------------

    def connect(
        self,
        carrier_name: str,
        rid: bytes,
        to_dialler: Callable[[Message], None],
        closed: Callable[[], None],
        *,
        reachable: bool,
    ) -> Wire:
        """Connect a dialling process; the connection is dead at once while the broker is down or unreachable."""
        runtime = self.runtime
        carrier: _Carrier = getattr(self, carrier_name)

        def arrived(message: Message) -> None:
            if runtime.alive:
                self._receive(carrier, rid, message)

        def lost() -> None:
            path = carrier.paths.get(rid)
            if runtime.alive and path is not None:
                self.turn(lambda now: self.core.disconnected(path, now))

        wire = Wire(self.world, arrived, to_dialler, lost, closed)
        if self.up and reachable:
            carrier.wires[rid] = wire
        else:
            wire.open = False
        return wire

    def _receive(self, carrier: _Carrier, rid: bytes, message: Message) -> None:
        path = carrier.paths.get(rid)
        route = message[0]
        if route:
            target = path.routes.get(route) if path is not None else None
            if path is not None and target is not None:
                path.heard = self.world.now
                target.carrier.wires[target.rid].send(1, [path.source, *message[1:]])
            return

        def control(now: float) -> None:
            frames = decode(message[1:])
            if path is not None:
                self.core.receive(path, frames, now)
            elif carrier is self.workers:
                self.core.worker_handshake(carrier, rid, frames, now)
            else:
                self.core.agent_handshake(carrier, rid, frames, now)

        self.turn(control)

    def turn(self, handle: Callable[[float], None]) -> None:
        """Run one event loop iteration of the broker: handle messages, do what is due, send."""
        now = self.world.now
        try:
            handle(now)
            self.core.iterate(now)
        except ProtocolError as error:
            self.failures.append(f"{now - 1000:.3f} {error.detail}")
        for path in self.env.outbox.take():
            frames, path.pending = path.pending, []
            wire = path.carrier.wires.get(path.rid)
            if wire is not None:
                wire.send(1, [b"", *encode(frames)])
        closing, self._closing = self._closing, []
        for path in closing:
            wire = path.carrier.wires.get(path.rid)
            if wire is not None:
                wire.cut(noticed_by_broker=False, noticed_by_dialler=True)
        self._arm()

    def _arm(self) -> None:
        deadline = self.env.timers.deadline()
        if deadline is None or deadline >= self._armed - 1e-9 > self.world.now:
            return
        self._armed = deadline
        self.runtime.after(max(0.0, deadline - self.world.now), self._due)

    def _due(self) -> None:
        self._armed = float("inf")
        self.turn(lambda now: None)

    # -- Shell ----------------------------------------------------------------------------------------------------

    def accept(self, path: Path) -> None:
        path.carrier.paths[path.rid] = path

    def why_not_dialled(self, address: str) -> str:
        raise AssertionError("no agent listens in the simulation")

    def security(self, path: Path) -> Security:
        return PLAIN

    def is_open(self, path: Path) -> bool:
        wire = path.carrier.wires.get(path.rid)
        return wire is not None and wire.open and path not in self._closing

    def forget(self, path: Path) -> None:
        if path.carrier.paths.get(path.rid) is path:
            del path.carrier.paths[path.rid]
        self._closing.append(path)

    def dial(self, path: Path, address: str) -> None:
        raise AssertionError("no agent listens in the simulation")

    def pause(self, path: Path, seconds: float) -> None:
        raise AssertionError("nobody sends too much in the simulation")

    def watch(self, pid: int, worker: str) -> None:
        self._watched[pid] = worker

    def raise_version(self) -> int:
        return UNKNOWN

    def process_ended(self, pid: int) -> None:
        """Notice that a worker ended, as a pidfd would tell."""
        uid = self._watched.pop(pid, None)
        if uid is not None and self.up:
            self.turn(lambda now: self.core.worker_died(uid, now))
