"""The processes of the simulation: the real broker core in a virtual shell, and workers and agents round the real
`Peer`."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from prouter.broker.core import Broker
from prouter.broker.env import Env
from prouter.broker.settings import Bounds, Settings
from prouter.broker.store import read_store
from prouter.broker.switch import Path
from prouter.errors import Conflict, NotFound, ProtocolError
from prouter.fabric.calls import Request, Result
from prouter.fabric.frames import decode, encode
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason, State
from prouter.transport.peer import Peer
from tests.simulation.world import Message, Runtime, Wire, World

__all__ = ["AgentNode", "BrokerNode", "Dialling", "WorkerNode"]

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
    bounds=Bounds(turn=4),
)


class _Carrier:
    """A socket of the broker: who is at the other end of each routing id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wires: dict[bytes, Wire] = {}
        self.paths: dict[bytes, Path] = {}


class _Store:
    """The broker's persistence: commits a little later, in order; a crash loses what was not committed."""

    def __init__(self, broker: BrokerNode, database: sqlite3.Connection) -> None:
        self._broker = broker
        self._database = database

    def submit(self, statement: str, *parameters: Any, done: Callable[[float], None] | None = None) -> None:
        broker = self._broker
        at = broker.committed = max(broker.committed, broker.world.now + broker.world.random.uniform(0, 0.005))

        def commit() -> None:
            self._database.execute(statement, parameters)
            if done is not None:
                broker.turn(lambda now: done(now))

        broker.runtime.after(at - broker.world.now, commit)


class BrokerNode:
    """The broker's process, restarted as often as needed over the same database."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = False
        self.committed = 0.0
        self.failures: list[str] = []
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self._watched: dict[int, str] = {}
        self.start()

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process."""
        world = self.world
        self.runtime = Runtime(world)
        self.agents, self.workers = _Carrier("agents"), _Carrier("workers")
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
        """kill -9."""
        self.world.note("broker crashes")
        self.up = False
        self.runtime.alive = False
        for carrier in (self.agents, self.workers):
            for wire in list(carrier.wires.values()):
                wire.cut(noticed_by_broker=False, noticed_by_dialler=True)

    # -- wires ----------------------------------------------------------------------------------------------------

    def connect(
        self, carrier_name: str, rid: bytes, to_dialler: Callable[[Message], None], closed: Callable[[], None]
    ) -> Wire:
        """A connection from a dialling process; dead at once while the broker is down."""
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
        if self.up:
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
                self.core.worker_stranger(carrier, rid, frames, now)
            else:
                self.core.agent_stranger(carrier, rid, frames, now)

        self.turn(control)

    def turn(self, handle: Callable[[float], None]) -> None:
        """One turn of the broker's loop: handle something, run what is due, send."""
        now = self.world.now
        try:
            handle(now)
            self.core.turn(now)
        except ProtocolError as error:
            self.failures.append(f"{now - 1000:.3f} {error.detail}")
        for path in self.env.outbox.take():
            frames, path.pending = path.pending, []
            wire = path.carrier.wires.get(path.rid)
            if wire is not None:
                wire.send(1, [b"", *encode(frames)])
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

    def forget(self, path: Path) -> None:
        if path.carrier.paths.get(path.rid) is path:
            del path.carrier.paths[path.rid]

    def dial(self, path: Path, address: str) -> None:
        raise AssertionError("no agent listens in the simulation")

    def watch(self, pid: int, worker: str) -> None:
        self._watched[pid] = worker

    def process_ended(self, pid: int) -> None:
        """What a pidfd tells."""
        uid = self._watched.pop(pid, None)
        if uid is not None and self.up:
            self.turn(lambda now: self.core.worker_died(uid, now))


class Dialling(ABC):
    """A process that keeps itself linked to the broker, like `prouter.transport.dialler.Dialler`."""

    kind = ""
    carrier = ""

    def __init__(self, world: World, broker: BrokerNode, uid: str, *, accepts: bool) -> None:
        self.world = world
        self.broker = broker
        self.uid = uid
        self.runtime = Runtime(world)
        self.peer = Peer(self, accepts_streams=accepts, resume_timeout=RESUME_TIMEOUT, runtime=self.runtime)
        self.wire: Wire | None = None
        self._attempts = 0
        self._dialling = False
        self._dial()
        self.runtime.after(HEARTBEAT / 2, self._tick)

    @abstractmethod
    def hello(self) -> dict[str, Any]:
        """How it introduces itself."""

    @abstractmethod
    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """See `PeerDelegate`, like the following."""

    @abstractmethod
    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None: ...

    @abstractmethod
    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]: ...

    @abstractmethod
    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None: ...

    def crash(self) -> None:
        """kill -9."""
        self.world.note(f"{self.kind} {self.uid[:4]} crashes")
        self.runtime.alive = False
        if self.wire is not None:
            self.wire.cut(noticed_by_broker=True, noticed_by_dialler=False)

    def _dial(self) -> None:
        self._dialling = False
        if self.wire is not None:
            self.wire.open = False
        self._attempts += 1
        runtime = self.runtime
        wires: list[Wire] = []

        def arrived(message: Message) -> None:
            if runtime.alive and self.wire is wires[0]:
                self.peer.receive(message)

        def closed() -> None:
            if runtime.alive and self.wire is wires[0] and self.peer.session is not None:
                self.peer.lose("connection closed")

        rid = f"{self.uid}:{self.world.random.getrandbits(32)}:{self._attempts}".encode()
        wire = self.broker.connect(self.carrier, rid, arrived, closed)
        wires.append(wire)
        self.wire = wire
        self.peer.attach(lambda parts: wire.send(0, parts), Session(self.world.now, HEARTBEAT, self.hello()))

    def _redial(self) -> None:
        if not self._dialling:
            self._dialling = True
            self.runtime.after(self.world.random.uniform(0.02, 0.5), self._dial)

    def _tick(self) -> None:
        self.peer.tick(self.world.now)
        self.runtime.after(HEARTBEAT / 2, self._tick)

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        self.world.note(f"{self.kind} {self.uid[:4]} refused: {code}")
        self._redial()

    def on_lost(self, peer: Peer, reason: str) -> None:
        self.world.note(f"{self.kind} {self.uid[:4]} lost its path: {reason}")
        self._redial()

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        raise AssertionError("nobody dials these")


class WorkerNode(Dialling):
    """A worker: follows links as `RouterClient` does."""

    kind, carrier = "worker", "workers"

    def __init__(self, world: World, broker: BrokerNode, pid: int) -> None:
        self.pid = pid
        self.asked: set[int] = set()
        self.links: dict[str, bool] = {}
        super().__init__(world, broker, world.uid(), accepts=False)

    def hello(self) -> dict[str, Any]:
        return {"kind": "worker", "uid": self.uid, "pid": self.pid, "version": "simulated"}

    def crash(self) -> None:
        super().crash()
        self.world.after(0.01, lambda: self.broker.process_ended(self.pid))

    def ask(self, op: str, args: dict[str, Any], done: Callable[[Result], None]) -> None:
        """A call to the broker."""
        self.peer.ask(op, args, done)

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self.links = {link["connection"]: bool(link["up"]) for link in body["links"]}
        for connection, up in self.links.items():
            if up:
                peer.route_up(connection.encode())

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        route = str(body.get("connection", "")).encode()
        if name == "link.up":
            self.links[body["connection"]] = True
            peer.route_up(route)
        elif name == "link.down" and body["gone"]:
            self.links.pop(body["connection"], None)
            peer.route_gone(route, "agent_gone", "the agent is gone")
        elif name == "link.down":
            self.links[body["connection"]] = False
            peer.route_down(route)

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        raise NotFound(request.op)

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        raise AssertionError("agents open no streams")


class AgentNode(Dialling):
    """An agent with a table of make-believe jobs, idempotent as the job manager is."""

    kind, carrier = "agent", "agents"

    def __init__(
        self,
        world: World,
        broker: BrokerNode,
        uid: str,
        effects: list[tuple[str, str]],
        serve: Callable[[AgentNode, Stream, dict[str, Any]], None],
        before: AgentNode | None = None,
    ) -> None:
        self.incarnation: str = before.incarnation if before is not None else world.uid()
        self.jobs: dict[str, JobRecord] = dict(before.jobs) if before is not None else {}
        self.removed: dict[str, JobRecord] = dict(before.removed) if before is not None else {}
        self.started: dict[str, str] = dict(before.started) if before is not None else {}
        self.effects = effects
        self._serve = serve
        super().__init__(world, broker, uid, accepts=True)

    def hello(self) -> dict[str, Any]:
        return {
            "kind": "agent", "uid": self.uid, "name": "", "incarnation": self.incarnation, "token": "",
            "platform": {}, "properties": {}, "version": "simulated", "capacity": {"max": None}, "draining": False,
        }  # fmt: skip

    def finish(self, uid: str) -> None:
        """A job ends by itself."""
        record = self.jobs.get(uid)
        if record is not None and record.state is State.RUNNING:
            self._change(uid, state=State.FINISHED, reason=Reason.EXITED, exit_code=0, finished_at=self.world.wall)

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        peer.notify("jobs", {"jobs": [record.to_wire() for record in self.jobs.values()], "complete": True})

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        if name == "workers":
            present = {uid.encode() for uid in body["workers"]}
            for route in [route for route in peer.muxes if route not in present]:
                peer.route_gone(route, "worker_gone", "the worker is gone")
            for route in sorted(present):
                peer.route_up(route)
        elif name == "worker.up":
            peer.route_up(body["worker"].encode())
        elif name == "worker.down":
            peer.route_gone(body["worker"].encode(), "worker_gone", "the worker is gone")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        self._serve(self, stream, target)

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        args = request.args
        uid = str(args.get("uid"))
        if request.op == "job.create":
            return {"record": self._create(uid, args["connection"], args["name"]).to_wire()}
        if uid in self.removed and request.op == "job.remove":
            return {"record": self.removed[uid].to_wire()}
        record = self.jobs.get(uid)
        if record is None:
            raise NotFound(f"job '{uid}' is not found", job=uid)
        if request.op == "job.start":
            record = self._start(record, args["request_id"])
        elif request.op == "job.remove":
            self.effects.append(("remove", uid))
            self.removed[uid] = self.jobs.pop(uid)
            gone = self._next(record, state=State.CLOSED, reason=record.reason or Reason.REMOVED)
            self.peer.notify("job.removed", {"record": gone.to_wire()})
        return {"record": record.to_wire()}

    def _create(self, uid: str, connection: str, name: str) -> JobRecord:
        if uid in self.jobs:
            return self.jobs[uid]
        self.effects.append(("create", f"{uid} on {self.incarnation}"))
        self.jobs[uid] = JobRecord(uid, connection, name, created_at=self.world.wall, revision=1)
        return self.jobs[uid]

    def _start(self, record: JobRecord, request_id: str) -> JobRecord:
        if self.started.get(record.uid) == request_id:
            return record
        if record.state is not State.NEW:
            raise Conflict("started before", job=record.uid)
        self.effects.append(("start", record.uid))
        self.started[record.uid] = request_id
        started = self._change(record.uid, state=State.RUNNING, started_at=self.world.wall)
        self.runtime.after(self.world.random.uniform(0.1, 4), lambda: self.finish(record.uid))
        return started

    def _change(self, uid: str, **changes: Any) -> JobRecord:
        record = self.jobs[uid] = self._next(self.jobs[uid], **changes)
        self.peer.notify("job", {"record": record.to_wire()})
        return record

    @staticmethod
    def _next(record: JobRecord, **changes: Any) -> JobRecord:
        return JobRecord.from_wire({**record.to_wire(), "revision": record.revision + 1, **changes})
