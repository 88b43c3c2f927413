"""Workers and agents of the simulation, built around the real `Peer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from prouter.errors import Conflict, NotFound
from prouter.fabric.calls import Request, Result
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason, State
from prouter.transport.backoff import Backoff
from prouter.transport.peer import Peer
from tests.simulation.router import HEARTBEAT, RESUME_TIMEOUT, BrokerNode
from tests.simulation.world import Message, Runtime, Wire, World

__all__ = ["AgentNode", "Dialling", "WorkerNode"]


class Dialling(ABC):
    """A process that keeps itself linked to the broker, like `prouter.transport.dialler.Dialler`.

    Attributes:
        apart_until: time when it can reach the broker again.
        delays: first and longest upper bound of its backoff, seconds.
        attempts: how often it has dialled.
    """

    kind = ""
    carrier = ""
    delays = (0.5, 0.5)

    def __init__(self, world: World, broker: BrokerNode, uid: str, *, accepts: bool, process: str = "") -> None:
        self.world = world
        self.broker = broker
        self.uid = uid
        self.runtime = Runtime(world)
        options: dict[str, Any] = {"accepts_streams": accepts, "process": process, "runtime": self.runtime}
        self.peer = Peer(self, resume_timeout=RESUME_TIMEOUT, **options)
        self.wire: Wire | None = None
        self.apart_until = 0.0
        self.attempts = 0
        self._backoff = Backoff(*self.delays, uniform=world.random.uniform)
        self._dialling = False
        self._dial()
        self.runtime.after(HEARTBEAT / 2, self._tick)

    @abstractmethod
    def hello(self) -> dict[str, Any]:
        """Return the body of its HELLO."""

    @abstractmethod
    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Do as `PeerDelegate` says; the methods below likewise."""

    @abstractmethod
    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None: ...

    @abstractmethod
    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]: ...

    @abstractmethod
    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None: ...

    def crash(self, *, noticed: bool = True) -> None:
        """Die as by kill -9, or as by a power failure, which the broker does not notice."""
        self.world.note(f"{self.kind} {self.uid[:4]} crashes")
        self.runtime.alive = False
        if self.wire is not None:
            self.wire.cut(noticed_by_broker=noticed, noticed_by_dialler=False)

    def _dial(self) -> None:
        self._dialling = False
        if self.wire is not None:
            self.wire.open = False
        self.attempts += 1
        runtime = self.runtime
        wires: list[Wire] = []

        def arrived(message: Message) -> None:
            if runtime.alive and self.wire is wires[0]:
                self.peer.receive(message)

        def closed() -> None:
            if runtime.alive and self.wire is wires[0] and self.peer.session is not None:
                self.peer.lose("connection closed")

        rid = f"{self.uid}:{self.world.random.getrandbits(32)}:{self.attempts}".encode()
        reachable = self.world.now >= self.apart_until
        wire = self.broker.connect(self.carrier, rid, arrived, closed, reachable=reachable)
        wires.append(wire)
        self.wire = wire
        if reachable and not wire.open:
            runtime.after(self.world.random.uniform(0, 0.05), closed)  # Refused: nobody listens.
        self.peer.attach(lambda parts: wire.send(0, parts), Session(self.world.now, HEARTBEAT, self.hello()))

    def _redial(self) -> None:
        if not self._dialling:
            self._dialling = True
            self.runtime.after(self._backoff.next(), self._dial)

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
    """A worker, which follows links as `RouterClient` does."""

    kind, carrier = "worker", "workers"

    def __init__(self, world: World, broker: BrokerNode, pid: int) -> None:
        self.pid = pid
        self.links: dict[str, bool] = {}
        self.processes: dict[str, str] = {}
        self.waits: set[str] = set()
        super().__init__(world, broker, world.uid(), accepts=False)

    def hello(self) -> dict[str, Any]:
        return {"kind": "worker", "uid": self.uid, "pid": self.pid, "version": "simulated"}

    def crash(self, *, noticed: bool = True) -> None:
        super().crash(noticed=noticed)
        self.world.after(0.01, lambda: self.broker.process_ended(self.pid))

    def ask(self, op: str, args: dict[str, Any], done: Callable[[Result], None]) -> str:
        """Make a call to the broker; return its id."""
        call_id = self.peer.ask(op, args, lambda result: self._answered(call_id, result, done))
        if op == "jobs.wait":
            self.waits.add(call_id)
        return call_id

    def _answered(self, call_id: str, result: Result, done: Callable[[Result], None]) -> None:
        self.waits.discard(call_id)
        done(result)

    def leave(self, call_id: str) -> None:
        """Note that the client of a wait disconnected."""
        self.peer.forget(call_id)
        self.waits.discard(call_id)
        self.peer.notify("wait.cancel", {"id": call_id})

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self._backoff.succeeded()
        self.arriving: list[dict[str, Any]] = []
        peer.notify("waits", {"ids": sorted(self.waits)})

    def _links_told(self, body: dict[str, Any]) -> None:
        self.arriving += body["links"]
        if not body["last"]:
            return
        self.links = {link["connection"]: bool(link["up"]) for link in self.arriving}
        for link in self.arriving:
            self._meet(link)
        for connection, up in self.links.items():
            if up:
                self.peer.route_up(connection.encode(), self.processes[connection])
        if body["complete"]:
            self._only(self.links)

    def _meet(self, link: dict[str, Any]) -> None:
        connection, process = link["connection"], link["process"]
        if link["up"] and self.processes.setdefault(connection, process) != process:
            self.processes[connection] = process
            self.peer.route_gone(connection.encode(), "agent_gone", "the agent was restarted")

    def _only(self, connections: Collection[str]) -> None:
        present = {connection.encode() for connection in connections}
        self.peer.keep_routes(present, "agent_gone", "the agent is gone")

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        route = str(body.get("connection", "")).encode()
        if name == "link.up":
            self._meet(body)
            self.links[body["connection"]] = True
            peer.route_up(route, body["process"])
        elif name == "links":
            self._links_told(body)
        elif name == "links.complete":
            self._only(self.links)
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
    """An agent whose jobs are entries in a table; it is as idempotent as the job manager.

    Attributes:
        endless: jobs that run until they are stopped.
        earlier: whether it has an earlier version, which replies with records rather than revisions.
    """

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
        self.process: str = world.uid()
        self.incarnation: str = before.incarnation if before is not None else world.uid()
        self.jobs: dict[str, JobRecord] = dict(before.jobs) if before is not None else {}
        self.removed: dict[str, JobRecord] = dict(before.removed) if before is not None else {}
        self.started: dict[str, str] = dict(before.started) if before is not None else {}
        self.endless: set[str] = set(before.endless) if before is not None else set()
        self.earlier = int(self.process[:2], 16) % 3 == 0
        self.effects = effects
        self._serve = serve
        super().__init__(world, broker, uid, accepts=True, process=self.process)
        self.runtime.spawn = self._spawn

    def hello(self) -> dict[str, Any]:
        return {
            "kind": "agent", "uid": self.uid, "name": "", "incarnation": self.incarnation, "process": self.process,
            "token": "", "platform": {}, "properties": {}, "version": "simulated", "capacity": {"max": None},
            "draining": False,
        }  # fmt: skip

    def forget_one(self) -> str:
        """Forget a job as if it had never existed; return its uid, empty if there is none."""
        if not self.jobs:
            return ""
        uid = self.world.random.choice(list(self.jobs))
        lost = ("create", f"{self.jobs.pop(uid).name} on {self.incarnation} as {uid}"), ("start", uid)
        self.effects[:] = [effect for effect in self.effects if effect not in lost]
        return uid

    def finish(self, uid: str) -> None:
        """Let a job end by itself."""
        record = self.jobs.get(uid)
        if record is not None and record.state is State.RUNNING:
            self._change(uid, state=State.FINISHED, reason=Reason.EXITED, exit_code=0, finished_at=self.world.wall)

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self._backoff.succeeded()
        if self.earlier or self.world.calm:
            self._announce(self.wire)
        else:  # Replies to calls that were sent again may overtake the list.
            self.runtime.after(self.world.random.uniform(0, 0.2), partial(self._announce, self.wire))

    def _announce(self, wire: Wire | None) -> None:
        if self.wire is wire and self.peer.ready:
            jobs = [record.to_wire() for record in self.jobs.values()]
            self.peer.notify("jobs", {"jobs": jobs, "complete": True})

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        if name == "workers":
            present = {uid.encode() for uid in body["workers"]}
            peer.keep_routes(present, "worker_gone", "the worker is gone")
            for route in sorted(present):
                peer.route_up(route)
        elif name == "worker.up":
            peer.route_up(body["worker"].encode())
        elif name == "worker.down":
            peer.route_gone(body["worker"].encode(), "worker_gone", "the worker is gone")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        if (route, stream.sid) in self.world.opened:
            self.world.fail(f"stream {stream.sid} of {route!r} was opened twice")
        self.world.opened.add((route, stream.sid))
        self._serve(self, stream, target)

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        record = self._carry_out(request)
        by_revision = request.args.get("answer") == "revision" and not self.earlier
        if by_revision and self.jobs.get(record.uid) == record:
            return {"revision": record.revision}
        return {"record": record.to_wire()}

    def _carry_out(self, request: Request) -> JobRecord:
        args = request.args
        uid = str(args.get("uid"))
        if request.op == "job.create":
            return self._create(uid, args["connection"], args["name"])
        if uid in self.removed and request.op == "job.remove":
            return self.removed[uid]
        record = self.jobs.get(uid)
        if record is None:
            raise NotFound(f"job '{uid}' is not found", job=uid)
        if request.op == "job.start":
            record = self._start(record, args["request_id"], args["request"]["seconds"])
        elif request.op == "job.stop":
            self.finish(uid)
            record = self.jobs[uid]
        elif request.op == "job.remove":
            self.effects.append(("remove", uid))
            if record.state is State.RUNNING:
                self._change(uid, state=State.FINISHED, reason=Reason.REMOVED, finished_at=self.world.wall)
            self.removed[uid] = record
            gone = self._next(self.jobs.pop(uid), state=State.CLOSED)
            self.peer.notify("job.removed", {"record": gone.to_wire()})
        return record

    def _create(self, uid: str, connection: str, name: str) -> JobRecord:
        if uid in self.jobs:
            return self.jobs[uid]
        if uid in self.removed:
            raise NotFound(f"job '{uid}' was removed", job=uid)
        self.effects.append(("create", f"{name} on {self.incarnation} as {uid}"))
        self.jobs[uid] = JobRecord(uid, connection, name, created_at=self.world.wall, revision=1)
        self.peer.notify("job", {"record": self.jobs[uid].to_wire()})
        return self.jobs[uid]

    def _start(self, record: JobRecord, request_id: str, seconds: float | None) -> JobRecord:
        if self.started.get(record.uid) == request_id:
            return record
        if record.state is not State.NEW:
            raise Conflict("started before", job=record.uid)
        self.effects.append(("start", record.uid))
        self.started[record.uid] = request_id
        started = self._change(record.uid, state=State.RUNNING, started_at=self.world.wall)
        if seconds is None:
            self.endless.add(record.uid)
        else:
            self.runtime.after(seconds, lambda: self.finish(record.uid))
        return started

    def _spawn(self, function: Callable[..., None], *args: Any) -> None:
        """Carry out a call: some take long, like the end of a job that is stopped, and some replies are lost."""
        chance = self.world.random
        slow, unlucky = chance.random() < 0.05, chance.random() < 0.03
        if self.world.calm:
            slow = unlucky = False

        def carry_out() -> None:
            function(*args)
            if unlucky and self.wire is not None:
                self.runtime.after(0.0, partial(self.wire.cut, noticed_by_broker=True, noticed_by_dialler=True))

        self.runtime.after(chance.uniform(0, 6) if slow else chance.uniform(0, 0.02), carry_out)

    def _change(self, uid: str, **changes: Any) -> JobRecord:
        record = self.jobs[uid] = self._next(self.jobs[uid], **changes)
        self.peer.notify("job", {"record": record.to_wire()})
        return record

    @staticmethod
    def _next(record: JobRecord, **changes: Any) -> JobRecord:
        return JobRecord.from_wire({**record.to_wire(), "revision": record.revision + 1, **changes})
