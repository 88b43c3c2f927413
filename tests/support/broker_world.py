"""A broker without sockets: peers are objects, the clock is a number, and the test decides when things happen."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.base.security import PLAIN, Security
from prouter.broker.base.settings import Bounds, Settings
from prouter.broker.base.switch import Path
from prouter.broker.core import Broker
from prouter.broker.jobs.stored_history import StoredHistory
from prouter.broker.links.hello import connection_uid
from prouter.broker.store.opening import read_store
from prouter.broker.store.restore import Saved
from prouter.errors import PRouterError
from prouter.fabric.calls import Caller, Responder, event_frame, read_event
from prouter.fabric.frames import CALL, EVENT, REPLY, Frame, decode, encode
from prouter.fabric.session import Lost, Refused, Session, SessionState, Welcomed
from prouter.jobs import JobRecord, State

__all__ = [
    "ADDRESS",
    "BOUNDS",
    "BY_UID",
    "Agent",
    "Listener",
    "Recorder",
    "Worker",
    "World",
    "created",
    "job_on",
    "listed",
    "restarted",
]

BOUNDS = Bounds()
BY_UID = {"type": "uid", "uid": "agent-1"}
ADDRESS = {"type": "address", "address": "host:1", "token": "secret"}


class Recorder:
    """The broker's store, an SQLite database, which commits at once or when the test says so."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.held: deque[Callable[[float], None]] | None = None
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.world: World | None = None

    def submit(
        self,
        statement: str,
        *parameters: Any,
        done: Callable[[float], None] | None = None,
        committed: Callable[[float], None] | None = None,
    ) -> None:
        assert sqlite3.complete_statement(statement + ";")
        self.statements.append((statement, parameters))
        with self._database:
            self._database.execute(statement, parameters)
        if committed is not None and self.world is not None:
            self.world.soon.append(committed)
        if done is None:
            return
        if self.held is not None:
            self.held.append(done)
        elif self.world is not None:
            self.world.soon.append(done)

    def hurry(self) -> None:
        """Nothing to do: no statement waits for more."""


class Peer:
    """A peer of the broker, at the other end of a path."""

    def __init__(self, world: World, rid: bytes, hello: dict[str, Any]) -> None:
        self.world = world
        self.rid = rid
        self.hello = hello
        self.security = PLAIN
        self.session = Session(world.now, 2.0, hello)
        self.caller = Caller()
        self.responder = Responder()
        self.welcome: dict[str, Any] | None = None
        self.refusal: tuple[str, str] | None = None
        self.lost = ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.results: dict[str, Any] = {}
        self.frozen = False
        self.held: list[Frame] | None = None
        """PINGs that are not answered yet; None: they are answered at once."""

    @property
    def ready(self) -> bool:
        return self.session.state is SessionState.READY

    def say(self, *frames: Frame) -> None:
        self.world.deliver(self, list(frames))

    def call(self, op: str, call_id: str | None = None, **args: Any) -> str:
        """Make a call to the broker; return its id, under which `results` holds the reply."""
        call_id, frame = self.caller.call(op, args, call_id)
        self.say(frame)
        return call_id

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """Make a call that the broker answers at once; return the value."""
        call_id = self.call(op, **args)
        answer = self.results.pop(call_id)
        if isinstance(answer, PRouterError):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def connections(self) -> list[dict[str, Any]]:
        """Return the connections as clients see them."""
        listed: list[dict[str, Any]] = json.loads(self.ask("connections")["connections"])["connections"]
        return listed

    def notify(self, name: str, **body: Any) -> None:
        self.say(event_frame(name, body))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [body for event, body in self.events if event == name]

    def hear(self, frames: list[Frame]) -> None:
        if self.frozen:
            return
        for frame in frames:
            if frame.type < CALL:
                answers, event = self.session.receive(frame, self.world.now)
                if isinstance(event, Welcomed):
                    self.welcome = event.body
                    self.welcomed()
                elif isinstance(event, Refused):
                    self.refusal = (event.code, event.text)
                elif isinstance(event, Lost):
                    self.lost = event.reason
                if self.held is not None:
                    self.held += answers
                elif answers:
                    self.say(*answers)
            elif frame.type == REPLY:
                result = self.caller.receive(frame)
                if result is not None:
                    self.results[result.call_id] = result.error or result.value
            elif frame.type == EVENT:
                self.events.append(read_event(frame))
            elif frame.type == CALL:
                self.asked(frame)

    def welcomed(self) -> None:
        """Do nothing; subclasses override this."""

    def asked(self, frame: Frame) -> None:
        """Do nothing; subclasses override this."""


class Worker(Peer):
    """A worker of the broker."""

    def __init__(self, world: World, uid: str) -> None:
        super().__init__(world, f"{uid}:1".encode(), {"kind": "worker", "uid": uid, "pid": 1})
        self.uid = uid


class Agent(Peer):
    """An agent whose jobs are records. While `silent` is set, it does not answer calls."""

    def __init__(self, world: World, uid: str, incarnation: str, path: int = 1, **hello: Any) -> None:
        introduction = {"kind": "agent", "uid": uid, "name": uid.upper(), "incarnation": incarnation, **hello}
        super().__init__(world, f"{uid}-{incarnation[:4]}:{path}".encode(), introduction)
        self.uid = uid
        self.incarnation = incarnation
        self.connection = connection_uid(incarnation, "SERVER")
        self.jobs: dict[str, JobRecord] = {}
        self.asked_for: list[tuple[str, dict[str, Any]]] = []
        self.silent = False
        self.fails: dict[str, PRouterError] = {}

    def again(self, path: int) -> Agent:
        """Return the same agent over another path."""
        new = Agent(self.world, self.uid, self.incarnation, path)
        new.hello, new.jobs, new.responder = dict(self.hello), self.jobs, self.responder
        new.session = Session(self.world.now, 2.0, new.hello)
        return new

    def welcomed(self) -> None:
        self.announce()

    def announce(self) -> None:
        self.notify("jobs", jobs=[record.to_wire() for record in self.jobs.values()], complete=True)

    def asked(self, frame: Frame) -> None:
        todo = self.responder.receive(frame)
        if isinstance(todo, Frame):
            self.say(todo)
        elif todo is not None:
            self.asked_for.append((todo.op, todo.args))
            if not self.silent:
                self.answer(todo.call_id, todo.op, todo.args)

    def answer(self, call_id: str, op: str, args: dict[str, Any]) -> None:
        if op in self.fails:
            self.say(self.responder.reply(call_id, error=self.fails[op]))
            return
        uid = args.get("uid", "")
        if op == "job.create":
            made = JobRecord(uid, args["connection"], args["name"], created_at=self.world.wall())
            told = {name: args[name] for name in ("owner", "resources", "client", "will_start") if name in args}
            self.jobs.setdefault(uid, replace(made, **told))
        elif op == "job.start":
            self.change(uid, state=State.RUNNING)
        value = {"record": self.jobs[uid].to_wire()} if uid in self.jobs else {}
        if op == "job.remove":
            self.jobs.pop(uid, None)
        self.say(self.responder.reply(call_id, value))

    def change(self, uid: str, **fields: Any) -> None:
        record = self.jobs[uid]
        self.jobs[uid] = record = replace(record, revision=record.revision + 1, **fields)
        self.notify("job", record=record.to_wire())


class Listener(Agent):
    """An agent that waits to be dialled."""

    def __init__(self, world: World, uid: str, incarnation: str, address: str, tokens: set[str]) -> None:
        super().__init__(world, uid, incarnation)
        self.rid = b""
        self.address = address
        self.tokens = tokens
        self.hellos: list[dict[str, Any]] = []
        self.path: Path | None = None

    def dialled(self, path: Path) -> None:
        self.path = path
        self.session = Session(self.world.now, 2.0)

    def hear(self, frames: list[Frame]) -> None:
        for frame in frames:
            _, event = self.session.receive(frame, self.world.now) if frame.type == 1 else ([], None)
            if event is not None:
                body = event.body  # type: ignore[union-attr]
                self.hellos.append(body)
                if body["token"] in self.tokens:
                    self.say(self.session.welcome(self.hello))
                else:
                    self.say(self.session.refuse("bad_token", "no"))
        super().hear([frame for frame in frames if frame.type != 1])
        for name, body in self.events:
            if name == "linked" and self.connection != body["connection"]:
                self.connection = body["connection"]
                self.announce()


class World:
    """A broker and its peers; it is the broker's `Shell`."""

    def __init__(self, saved: Saved | None = None, **settings: Any) -> None:
        self.now = 1000.0
        self.started = self.now
        self.soon: deque[Callable[[float], None]] = deque()
        saved = saved or Saved()
        database = sqlite3.connect(":memory:")
        saved.history._database.backup(database)
        saved.history = StoredHistory(database)
        self.recorder = Recorder(database)
        self.recorder.world = self
        self.peers: dict[tuple[str, bytes], Peer] = {}
        self.listeners: dict[str, Listener] = {}
        self.paths: dict[tuple[str, bytes], Path] = {}
        self.closed: set[tuple[str, bytes]] = set()
        """Connections that the broker closed."""
        self.hung_up: set[Path] = set()
        """Paths of agents that it dialled and closed."""
        self.watched: dict[int, str] = {}
        self.dials: list[str] = []
        self.undialable: dict[str, str] = {}
        """Reasons why agents cannot be dialled, by address."""
        self.paused: list[tuple[Path, float]] = []
        self.set_by = 0.0
        """Seconds by which somebody has set the wall clock forward."""
        self.version = 0
        """Of the list of connections, as workers see it."""
        self._uids = 0
        self._busy = False
        self._queue: deque[tuple[Peer, list[Frame]]] = deque()
        self.env = Env(
            settings=Settings(**{"uid": "router-1", "name": "the router", "workers_return": 0.0, **settings}),
            shell=self,
            store=self.recorder,
            wall=self.wall,
            new_uid=self._new_uid,
            incarnation="b" * 32,
        )
        self.broker = Broker(self.env, saved, self.now)

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now + self.set_by

    def _new_uid(self) -> str:
        self._uids += 1
        return f"{self._uids:032x}"

    # -- peers

    def worker(self, uid: str = "worker-1") -> Worker:
        worker = Worker(self, uid)
        self.join(worker)
        return worker

    def agent(self, uid: str = "agent-1", incarnation: str = "a" * 32, **hello: Any) -> Agent:
        agent = Agent(self, uid, incarnation, **hello)
        self.join(agent)
        return agent

    def listener(
        self, address: str = "host:1", tokens: set[str] | None = None, incarnation: str = "c" * 32
    ) -> Listener:
        made = Listener(self, "agent-1", incarnation, address, tokens or {"secret"})
        self.listeners[address] = made
        return made

    def join(self, peer: Peer) -> None:
        """Let a peer send HELLO over a new connection."""
        self.closed.discard((self.carrier(peer), peer.rid))
        self.peers[(self.carrier(peer), peer.rid)] = peer
        peer.say(*peer.session.start())

    def vanish(self, peer: Peer, *, closed: bool = True) -> None:
        """Let a peer close its end of the connection, or fall silent."""
        path = self.path_of(peer)
        self.peers.pop((self.carrier(peer), peer.rid), None)
        if closed and path is not None:
            self.broker.disconnected(path, self.now)
        self.settle()

    def carrier(self, peer: Peer) -> str:
        if isinstance(peer, Worker):
            return "workers"
        return f"dialled {peer.address}" if isinstance(peer, Listener) else "agents"

    def path_of(self, peer: Peer) -> Path | None:
        return peer.path if isinstance(peer, Listener) else self.paths.get((self.carrier(peer), peer.rid))

    # -- time and messages

    def deliver(self, peer: Peer, frames: list[Frame]) -> None:
        """Send a message of a peer to the broker."""
        self._queue.append((peer, frames))
        self.settle()

    def settle(self) -> None:
        """Deliver messages until nobody sends any more."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue or self.env.outbox or self.soon:
                while self._queue:
                    peer, frames = self._queue.popleft()
                    self._to_broker(peer, decode(encode(frames)))
                while self.soon:
                    self.soon.popleft()(self.now)
                for path in self.env.outbox.take():
                    frames, path.pending = path.pending, []
                    self._to_peer(path, decode(encode(frames)))
        finally:
            self._busy = False

    def _to_broker(self, peer: Peer, frames: list[Frame]) -> None:
        path = self.path_of(peer)
        if (self.carrier(peer), peer.rid) in self.closed and not isinstance(peer, Listener):
            return
        if path in self.hung_up:
            return
        if path is not None:
            self.broker.receive(path, frames, self.now)
        elif isinstance(peer, Worker):
            self.broker.worker_handshake("workers", peer.rid, frames, self.now)
        elif not isinstance(peer, Listener):
            self.broker.agent_handshake("agents", peer.rid, frames, self.now)

    def _to_peer(self, path: Path, frames: list[Frame]) -> None:
        peer = self.peers.get((path.carrier, path.rid))
        if peer is None and str(path.carrier).startswith("dialled "):
            peer = self.listeners.get(str(path.carrier).removeprefix("dialled "))
            if peer is not None and peer.path is not path:
                return
        if peer is not None:
            peer.hear(frames)

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + step)
            for peer in list(self.peers.values()):
                if not peer.frozen:
                    frames, _ = peer.session.tick(self.now)
                    if frames:
                        peer.say(*frames)
            self.broker.iterate(self.now)
            self.settle()

    # -- Shell

    def accept(self, path: Path) -> None:
        self.paths[(path.carrier, path.rid)] = path

    def dial(self, path: Path, address: str) -> None:
        path.carrier = f"dialled {address}"
        self.dials.append(address)
        listener = self.listeners.get(address)
        if listener is not None:
            listener.dialled(path)

    def why_not_dialled(self, address: str) -> str:
        return self.undialable.get(address, "")

    def security(self, path: Path) -> Security:
        peer = self.peers.get((path.carrier, path.rid))
        return peer.security if peer is not None else PLAIN

    def is_open(self, path: Path) -> bool:
        key = (path.carrier, path.rid)
        return key in self.peers and key not in self.closed

    def forget(self, path: Path) -> None:
        if str(path.carrier).startswith("dialled "):
            self.hung_up.add(path)
        self.paths.pop((path.carrier, path.rid), None)
        self.closed.add((path.carrier, path.rid))

    def pause(self, path: Path, seconds: float) -> None:
        self.paused.append((path, seconds))

    def watch(self, pid: int, worker: str) -> None:
        self.watched[pid] = worker

    def raise_version(self) -> int:
        self.version += 1
        return self.version


def restarted(world: World, **settings: Any) -> World:
    """The next broker, over what this one had written down."""
    with closing(sqlite3.connect(":memory:")) as database:
        read_store(database)
        for statement, parameters in world.recorder.statements:
            database.execute(statement, parameters)
        database.commit()
        return World(read_store(database), **settings)


def job_on(worker: Worker, agent: dict[str, Any] | None = None, key: str = "key-1") -> dict[str, Any]:
    """Create a job; return it as `created` does."""
    return created(worker, worker.call("jobs.create", name="job", agent=agent or BY_UID, key=key))


def created(worker: Worker, call_id: str) -> dict[str, Any]:
    """Return the job that a call created; ``at`` holds its address for further calls."""
    answer = worker.results[call_id]
    if isinstance(answer, PRouterError):
        raise answer
    job: dict[str, Any] = answer["job"]
    return {**job, "at": {"connection": job["path"].split("/")[2], "job": job["uid"]}}


def listed(worker: Worker, **filters: Any) -> list[dict[str, Any]]:
    """Return jobs as the broker lists them."""
    answer = worker.ask("jobs.list", **filters)
    jobs: list[dict[str, Any]] = json.loads(b"[%b]" % answer["jobs"])
    assert len(jobs) == answer["count"]
    return jobs
