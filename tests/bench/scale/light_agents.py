"""Many light agents in one process; `python -m tests.bench.scale.light_agents PLAN`.

Each has a socket, a key pair, a session and a backoff of its own, made of the classes that real agents use: so their
handshakes, heartbeats and attempts to link again are those of real agents. None can run a job. On request they tell
records of running jobs, and their load every few seconds, as real agents do.

Commands come as lines of stdin: ``agents N`` (dial until there are N), ``load SECONDS`` (tell the load that often; 0
never), ``ping N`` (send N PINGs each, one after the other, as if so many heartbeats had passed). A `Report` goes to
stdout as a line of JSON whenever it has changed, ten times a second at most.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import random
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import zmq

from prouter.agent.links.links import WELCOMED_WITHIN
from prouter.config import AgentConfig
from prouter.errors import ProtocolError
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import Frame, decode, encode
from prouter.fabric.parts import in_parts
from prouter.fabric.session import Lost, Refused, Session, Welcomed
from prouter.jobs import JobRecord, State
from prouter.key_pairs import KeyPair
from prouter.process.descriptors import raise_descriptor_limit
from prouter.transport.backoff import Backoff
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection

__all__ = ["DESCRIPTORS", "Plan", "Report"]

DESCRIPTORS = 8
"""Descriptors that one agent takes in this process, with those of the connection before, which libzmq closes later."""
_CLIENT = AgentConfig().client
_HEARTBEAT = 2.0
_HANDSHAKE = 20.0
"""Seconds that a handshake may take, as for real agents (prouter/transport/dialler.py)."""
_AT_ONCE = 20
"""Agents that are dialled before others are looked after."""
_TOLD_EVERY = 0.1


@dataclass(frozen=True)
class Plan:
    """What one process of light agents is to be.

    Attributes:
        endpoint: ``HOST:PORT`` of the router; the host is numeric.
        source: address to connect from; each of 127.0.0.0/8 has ports of its own.
        key: public key of the router; empty for links without encryption.
        first: number of the first agent, so that each has another uid than those of other processes.
        jobs: running jobs that each agent tells.
    """

    endpoint: str
    source: str
    key: str
    first: int
    jobs: int


@dataclass
class Report:
    """Counters of one process.

    Attributes:
        dialled: agents that have been dialled at least once.
        linked: agents that are linked now.
        attempts: connections begun.
        pings: PINGs that a command still asks for.
        lost: links lost.
        refused: HELLOs refused.
        at: when this was so (monotonic seconds).
    """

    dialled: int = 0
    linked: int = 0
    attempts: int = 0
    pings: int = 0
    lost: int = 0
    refused: int = 0
    at: float = 0.0


class LightAgent:
    """One agent: at most one connection at a time, and a backoff between them."""

    __slots__ = ("_backoff", "_fleet", "_number", "_pair", "_pinged", "connection", "linked", "session", "uid")

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._number = number
        public, secret = zmq.curve_keypair()
        self._pair = KeyPair(public.decode(), secret.decode())
        self._backoff = Backoff(_CLIENT.reconnect_delay, _CLIENT.longest_reconnect_delay)
        self.uid = f"light-{number:06d}"
        self.connection: DealerConnection | None = None
        self.session: Session | None = None
        self.linked = False
        self._pinged = 0

    def dial(self, now: float) -> None:
        """Begin a connection; its session begins once it is there, as that of a real agent."""
        plan = self._fleet.plan
        curve = ClientCurve(plan.key, self._pair) if plan.key else None
        endpoint = f"tcp://{plan.source}:0;{plan.endpoint}"
        self.connection = connection = DealerConnection(endpoint, self.uid.encode(), curve=curve)
        self._fleet.report.attempts += 1
        self._fleet.opened(self, connection)
        self._fleet.at(now + _HANDSHAKE, partial(self._give_up, connection))

    def say(self, frames: list[Frame]) -> None:
        """Send frames to the router."""
        if frames and self.connection is not None:
            self.connection.queue([b"", *encode(frames)])
            self.connection.flush()
            if self.connection.more:
                self._fleet.again[self] = None

    def look(self, now: float) -> None:
        """Receive what has arrived."""
        connection = self.connection
        if connection is None:
            return
        ready = connection.ready
        try:
            messages = connection.receive()
        except (OSError, ProtocolError):
            self._lose(now)
            return
        if connection.ready and not ready:
            self.session = Session(now, _HEARTBEAT, self._hello(), welcomed_within=WELCOMED_WITHIN)
            self.say(self.session.start())
            self._beat_later(self.session, connection, now)
        elif connection.blocked:
            connection.flush()
        for parts in messages:
            if parts[0]:
                continue  # Of a worker: there is nobody to take streams.
            for frame in decode(parts[1:]):
                self._take(frame, now)
            if self.connection is not connection:
                return
        if connection.more:
            self._fleet.again[self] = None

    def _take(self, frame: Frame, now: float) -> None:
        if self.session is None:
            return
        answers, event = self.session.receive(frame, now)
        self.say(answers)
        if isinstance(event, Welcomed):
            self.linked = True
            self._backoff.succeeded()
            self._fleet.report.linked += 1
            self._tell_jobs(str(event.body["connection"]))
        elif isinstance(event, Refused):
            self._fleet.report.refused += 1
            self._lose(now)
        elif isinstance(event, Lost):
            self._lose(now)

    def _give_up(self, connection: DealerConnection, now: float) -> None:
        if self.connection is connection and self.session is None:
            self._lose(now)

    def _beat(self, connection: DealerConnection, now: float) -> None:
        if self.connection is connection:
            self.look(now)  # Many agents share this loop, which may be late: what waits here is no silence.
        if self.connection is not connection or self.session is None:
            return
        frames, event = self.session.tick(now)
        self.say(frames)
        if isinstance(event, Lost):
            self._lose(now)
        else:
            self._beat_later(self.session, connection, now)

    def _beat_later(self, session: Session, connection: DealerConnection, now: float) -> None:
        """Look at the session when it needs that, and as often as a linked one until it is welcomed."""
        when = session.deadline() if self.linked else min(session.deadline(), now + _HEARTBEAT)
        self._fleet.at(when, partial(self._beat, connection))

    def _lose(self, now: float) -> None:
        if self.connection is not None:
            self._fleet.closing(self.connection)
            self.connection.close()
        if self.linked:
            self._fleet.report.linked -= 1
            self._fleet.report.lost += 1
        self.connection = self.session = None
        self.linked = False
        self._pinged = 0
        self._fleet.at(now + self._backoff.next(), self.dial)

    def ping(self, now: float) -> bool:
        """Send a PING, unless one is under way; whether it was sent."""
        if not self.linked or self.session is None or self.session.answered < self._pinged:
            return False
        frame = self.session.ping(now)
        self._pinged = frame.offset
        self.say([frame])
        return True

    def tell_load(self) -> None:
        """Tell the load, which differs each time."""
        if self.linked:
            load = {"load": random.uniform(0.0, 4.0), "running": self._fleet.plan.jobs, "draining": False}
            self.say([event_frame("load", load)])

    def _tell_jobs(self, connection: str) -> None:
        records = (running_job(self._number, number, connection).to_wire() for number in range(self._fleet.plan.jobs))
        for part, last in in_parts(records):
            self.say([event_frame("jobs", {"jobs": part, "complete": last})])

    def _hello(self) -> dict[str, Any]:
        number = self._number
        return {
            "kind": "agent",
            "uid": self.uid,
            "name": f"node-{number:06d}",
            "incarnation": digest(f"agent {number}"),
            "platform": {
                "system": "Linux",
                "node": f"node-{number:06d}",
                "release": "6.1.0-18-amd64",
                "version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1",
                "machine": "x86_64",
            },
            "properties": {"rack": number % 40, "gpu": number % 3 == 0},
            "version": "1.0",
            "process": digest(f"process {number}"),
            "capacity": {"max": None},
            "draining": False,
            "token": "",
        }


def digest(text: str) -> str:
    """32 hex characters that are always the same for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def running_job(agent: int, number: int, connection: str) -> JobRecord:
    """The record of a typical running job."""
    return JobRecord(
        uid=digest(f"job {number} of {agent}"),
        connection=connection,
        name=f"notebook-{number}",
        state=State.RUNNING,
        revision=4,
        args=["jupyter", "lab", "--no-browser", "--port=41231", "--ServerApp.base_url=/"],
        pid=4000 + number,
        ports=[41231],
        endpoint={"port": 41231},
        created_at=1.7e9 + agent + number / 1000,
        started_at=1.7e9 + agent + number / 1000 + 0.1,
    )


class Fleet:
    """All light agents of this process, on one loop.

    Attributes:
        again: agents whose connection may have more than its descriptor tells.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report()
        self.again: dict[LightAgent, None] = {}
        self._agents: list[LightAgent] = []
        self._wanted = 0
        self._load_every = 0.0
        self._loads_due = 0.0
        self._next_load = self._next_ping = 0
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._poll = select.epoll()
        self._by_fd: dict[int, LightAgent] = {}
        self._told = Report()
        self._commands = b""
        os.set_blocking(0, False)
        self._poll.register(0, select.EPOLLIN)

    def at(self, when: float, action: Callable[[float], None]) -> None:
        """Call ``action(now)`` at `when`."""
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, action))

    def opened(self, agent: LightAgent, connection: DealerConnection) -> None:
        """Watch a connection."""
        self._by_fd[connection.fd] = agent
        self._poll.register(connection.fd, select.EPOLLIN)
        self.again[agent] = None

    def closing(self, connection: DealerConnection) -> None:
        """Watch a connection no more."""
        self._poll.unregister(connection.fd)
        del self._by_fd[connection.fd]

    def run(self) -> None:
        """Look after all agents until stdin is closed."""
        while True:
            self._dial_some()
            busy = self.again or self.report.pings or len(self._agents) < self._wanted
            timeout = max(0.0, min(_TOLD_EVERY, (self._timers[0][0] if self._timers else 1e9) - time.monotonic()))
            for fd, _ in self._poll.poll(0 if busy else timeout, 256):
                if fd:
                    self.again[self._by_fd[fd]] = None
                elif not self._read_commands():
                    return
            now = time.monotonic()
            again, self.again = self.again, {}
            for agent in again:
                agent.look(now)
            for _ in range(256):
                if not self._timers or self._timers[0][0] > now:
                    break
                heapq.heappop(self._timers)[2](now)
            self._tell_loads(now)
            self._send_pings(now)
            self._tell(now)

    def _dial_some(self) -> None:
        for _ in range(min(_AT_ONCE, self._wanted - len(self._agents))):
            agent = LightAgent(self, self.plan.first + len(self._agents))
            self._agents.append(agent)
            agent.dial(time.monotonic())
        self.report.dialled = len(self._agents)

    def _tell_loads(self, now: float) -> None:
        """Have some agents tell their load, so that all have within the interval."""
        if not self._load_every or not self._agents:
            return
        owed = min(256, int((now - self._loads_due) * len(self._agents) / self._load_every))
        for _ in range(owed):
            self._next_load = (self._next_load + 1) % len(self._agents)
            self._agents[self._next_load].tell_load()
        self._loads_due += owed * self._load_every / len(self._agents)

    def _send_pings(self, now: float) -> None:
        """Have some agents send a PING, if a command asks for it."""
        for _ in range(min(64, self.report.pings)):
            if not self._agents[self._next_ping].ping(now):
                return
            self._next_ping = (self._next_ping + 1) % len(self._agents)
            self.report.pings -= 1

    def _read_commands(self) -> bool:
        data = os.read(0, 4096)
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(" ")
            if name == "agents":
                self._wanted = int(value)
            elif name == "load":
                self._load_every, self._loads_due = float(value), time.monotonic()
            elif name == "ping":
                self.report.pings = int(value) * len(self._agents)
        return bool(data)

    def _tell(self, now: float) -> None:
        report = self.report
        if now - self._told.at < _TOLD_EVERY or replace(report, at=self._told.at) == self._told:
            return
        report.at = now
        self._told = replace(report)
        print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    raise_descriptor_limit()
    Fleet(Plan(**json.loads(sys.argv[1]))).run()
