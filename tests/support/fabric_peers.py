"""A broker process, with agents and workers in the test's process: real sockets, but jobs that are only records."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent

from prouter.errors import NotFound, PRouterError
from prouter.fabric.calls import Request
from prouter.fabric.session import Session
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, Reason, State
from prouter.transport.backoff import Backoff
from prouter.transport.connection import Connection
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer
from prouter.transport.router_socket import RouterSocket

_BROKER = """
import sys
from prouter.config import load_router
from prouter.config.directories import locate_router
from prouter.broker.server import run
import logging
logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
config = locate_router(load_router(None, sys.argv[2:], {}))
port = int(sys.argv[1])
sys.exit(run(config, bind_port=port or None, ready=lambda endpoint: print(endpoint, flush=True)))
"""


def until(condition: Callable[[], Any], seconds: float = 5.0, what: str = "") -> Any:
    """Let the event loop run until `condition` returns something true; return that.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what or condition}")
        gevent.sleep(0.002)


class BrokerProcess:
    """A broker with directories of its own, which keeps its port over restarts."""

    def __init__(self, directory: Path, **sets: Any) -> None:
        self.directory = directory
        self.sets = {
            "state.dir": str(directory / "state"),
            "state.run_dir": str(directory / "run"),
            "server.port": 0,
            "identity.uid": "router-1",
            "identity.name": "test router",
            **{key.replace("__", "."): value for key, value in sets.items()},
        }
        self.ipc = f"ipc://{directory}/run/broker.ipc"
        self.log = directory / "broker.log"
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        arguments = [f"{key}={value!r}" for key, value in self.sets.items()]
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BROKER, str(self.port), *arguments], stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 30)
        line = self.process.stdout.readline().decode().strip() if readable else ""
        if not line:
            self.process.kill()
            self.process.wait(10)
            raise RuntimeError(f"the broker did not start:\n{self.log.read_text()}")
        self.endpoint = line
        self.port = int(line.rpartition(":")[2])

    def kill(self) -> None:
        """Kill it, so that it cannot say goodbye."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        """Ask it to end; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def stop(self) -> None:
        """End it in whatever state it is."""
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class EchoHandler:
    """A stream handler that sends back what arrives."""

    takes_views = False

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waiting: list[bytes] = []

    def on_data(self, data: bytes) -> None:
        self.waiting.append(data)
        self.on_writable()

    def on_writable(self) -> None:
        while self.waiting:
            data = self.waiting.pop(0)
            taken = self.stream.write(data)
            self.stream.consume(taken)
            if taken < len(data):
                self.waiting.insert(0, data[taken:])
                return

    def on_finish(self) -> None:
        self.stream.close()

    def on_reset(self, code: str, text: str) -> None:
        self.waiting.clear()

    def on_closed(self) -> None:
        self.waiting.clear()


class Collector:
    """A stream handler that keeps what arrives."""

    takes_views = False

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.finished = False
        self.closed = False
        self.reset: tuple[str, str] | None = None
        self.writable = False

    def on_data(self, data: bytes) -> None:
        self.data += data
        self.stream.consume(len(data))

    def on_writable(self) -> None:
        self.writable = True

    def on_finish(self) -> None:
        self.finished = True

    def on_reset(self, code: str, text: str) -> None:
        self.reset = (code, text)

    def on_closed(self) -> None:
        self.closed = True


class FakeAgent:
    """An agent whose jobs are records: it speaks the protocol and starts no processes."""

    def __init__(self, uid: str = "agent-1", *, token: str = "", incarnation: str | None = None, **hello: Any) -> None:
        self.uid = uid
        self.token = token
        self.incarnation = incarnation or uuid.uuid4().hex
        self.hello = hello
        self.jobs: dict[str, JobRecord] = {}
        self.creates: list[str] = []
        self.removed: list[str] = []
        self.calls: list[str] = []
        self.delay: dict[str, gevent.event.Event] = {}
        self.welcomes: list[dict[str, Any]] = []
        self.refusals: list[tuple[str, str]] = []
        self.losses: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.greeted: list[dict[str, Any]] = []
        self.accepts = {""}
        self.peer = Peer(self, accepts_streams=True)
        self.dialler: Dialler | None = None
        self.socket: RouterSocket | None = None
        self.connection = ""

    # -- dialling and listening

    def introduction(self) -> dict[str, Any]:
        return {
            "kind": "agent",
            "uid": self.uid,
            "name": f"name of {self.uid}",
            "incarnation": self.incarnation,
            "platform": {"system": "Test"},
            "properties": {"colour": "blue"},
            "version": "1.0",
            "capacity": {"max": None},
            "draining": False,
            **self.hello,
        }

    def dial(self, endpoint: str, heartbeat: float = 2.0, delay: float = 0.05) -> FakeAgent:
        self.dialler = Dialler(
            self.peer,
            endpoint,
            identity=f"{self.uid}-{uuid.uuid4().hex[:8]}",
            hello=lambda: {**self.introduction(), "token": self.token},
            heartbeat=heartbeat,
            backoff=Backoff(delay, 0.2),
        )
        self.dialler.start()
        return self

    def listen(self, port: int = 0) -> int:
        """Listen for a broker that dials; return the port."""
        self._current: Connection | None = None
        self.socket = RouterSocket("127.0.0.1", port, self._arrived, lambda connection: None)
        return int(self.socket.endpoint.rpartition(":")[2])

    def _arrived(self, connection: Connection, parts: list[bytes]) -> None:
        if connection is not self._current:
            self._current = connection
            socket = self.socket
            assert socket is not None
            socket.trust(connection)

            def send(message: Sequence[bytes]) -> bool:
                return socket.send(connection, message)

            self.peer.attach(send, Session(time.monotonic(), 2.0))
        self.peer.receive(parts)

    def stop(self) -> None:
        if self.dialler is not None:
            self.dialler.stop("shutdown")
        if self.socket is not None:
            self.socket.close()

    def vanish(self) -> None:
        """Close all connections without a goodbye, as after `kill -9`."""
        if self.dialler is not None:
            self.dialler._stopped = True
            self.peer.detach()
            if self.dialler._ticker is not None:
                self.dialler._ticker.kill(block=False)
            if self.dialler._socket is not None:
                self.dialler._socket.close()
        if self.socket is not None:
            self.peer.detach()
            self.socket.close()

    # -- PeerDelegate

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        self.greeted.append(body)
        if body["token"] not in self.accepts:
            peer.refuse("bad_token", "the token is not accepted here")
        else:
            peer.welcome(self.introduction())

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self.welcomes.append(body)
        self.connection = body["connection"]
        if self.dialler is not None:
            self.dialler.succeeded()
        self.announce()

    def announce(self) -> None:
        jobs = [record.to_wire() for record in self.jobs.values() if record.connection == self.connection]
        self.peer.notify("jobs", {"jobs": jobs, "complete": True})

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        self.refusals.append((code, text))
        if self.dialler is not None:
            self.dialler.lost()

    def on_lost(self, peer: Peer, reason: str) -> None:
        self.losses.append(reason)
        if self.dialler is not None:
            self.dialler.lost()

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        self.events.append((name, body))
        if name == "linked":
            self.connection = body["connection"]
            self.announce()
        elif name == "workers":
            wanted = {uid.encode() for uid in body["workers"]}
            for route in [route for route in peer.muxes if route not in wanted]:
                peer.route_gone(route, "worker_gone", "the worker is gone")
            for route in wanted:
                peer.route_up(route)
        elif name == "worker.up":
            peer.route_up(body["worker"].encode())
        elif name == "worker.down":
            peer.route_gone(body["worker"].encode(), "worker_gone", "the worker is gone")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        stream.handler = EchoHandler(stream)

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        self.calls.append(request.op)
        held = self.delay.get(request.op)
        if held is not None:
            held.wait(30)
        args = request.args
        if request.op == "job.create":
            self.creates.append(args["uid"])
            record = self.jobs.get(args["uid"]) or JobRecord(
                args["uid"], args["connection"], args["name"], created_at=time.time()
            )
            self.jobs[record.uid] = record
            return {"record": record.to_wire()}
        if request.op == "drain":
            return {}
        if args["uid"] not in self.jobs:
            raise NotFound(f"job '{args['uid']}' is not found")
        if request.op == "job.start":
            return {"record": self.change(args["uid"], state=State.RUNNING, started_at=time.time(), pid=1)}
        if request.op == "job.stop":
            return {"record": self.end(args["uid"], reason=Reason.STOPPED)}
        if request.op == "job.remove":
            record = self.jobs.pop(args["uid"])
            self.removed.append(record.uid)
            return {"record": record.to_wire()}
        if request.op == "job.usage":
            return {"record": replace(self.jobs[args["uid"]], rss_bytes=4096).to_wire()}
        raise PRouterError(f"unknown call {request.op}")

    def change(self, uid: str, **fields: Any) -> dict[str, Any]:
        record = self.jobs[uid]
        self.jobs[uid] = record = replace(record, revision=record.revision + 1, **fields)
        self.peer.notify("job", {"record": record.to_wire()})
        return record.to_wire()

    def end(self, uid: str, reason: Reason = Reason.EXITED) -> dict[str, Any]:
        return self.change(uid, state=State.FINISHED, reason=reason, exit_code=0, finished_at=time.time())


class FakeWorker:
    """A worker without HTTP."""

    def __init__(self, ipc: str, pid: int | None = None) -> None:
        self.uid = uuid.uuid4().hex
        self.pid = pid if pid is not None else os.getpid()
        self.welcomes: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.losses: list[str] = []
        self.peer = Peer(self)
        self.dialler = Dialler(
            self.peer,
            ipc,
            identity=self.uid,
            hello=lambda: {"kind": "worker", "uid": self.uid, "pid": self.pid, "version": "1.0"},
            heartbeat=1.0,
            backoff=Backoff(0.02, 0.2),
        )
        self.dialler.start()
        until(lambda: self.peer.ready, what="worker is welcomed")

    def stop(self) -> None:
        self.dialler.stop("shutdown")

    def call(self, op: str, timeout: float = 10.0, call_id: str | None = None, **args: Any) -> dict[str, Any]:
        return self.peer.call(op, args, timeout=timeout, call_id=call_id)

    def create(self, agent: dict[str, Any], key: str | None = None, name: str = "a job") -> dict[str, Any]:
        """Create a job; return its info with ``connection`` added."""
        job = self.call("jobs.create", name=name, agent=agent, key=key or uuid.uuid4().hex)["job"]
        return {**job, "connection": job["path"].split("/")[2]}

    def connections(self, etag: str | None = None) -> list[dict[str, Any]]:
        """Return the connections as clients see them."""
        listed: list[dict[str, Any]] = json.loads(self.call("connections", etag=etag)["connections"])["connections"]
        return listed

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the bodies of the events with this name."""
        return [body for event, body in self.events if event == name]

    def echo(self, connection: str, data: bytes = b"") -> Collector:
        """Open a stream to an agent that sends everything back."""
        stream = self.peer.mux(connection.encode()).open({"kind": "http", "job": "x"})
        stream.handler = Collector(stream)
        if data:
            stream.write(data)
        return stream.handler  # type: ignore[no-any-return]

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        raise AssertionError("workers dial")

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        self.welcomes.append(body)
        self.dialler.succeeded()
        self.links = []

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        self.dialler.lost()

    def on_lost(self, peer: Peer, reason: str) -> None:
        self.losses.append(reason)
        self.dialler.lost()

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        self.events.append((name, body))
        route = body.get("connection", "").encode()
        if name == "links":
            self.links += body["links"]
            for link in body["links"]:
                if link["up"]:
                    peer.route_up(link["connection"].encode())
        elif name == "link.up":
            peer.route_up(route)
        elif name == "link.down" and body["gone"]:
            peer.route_gone(route, "agent_gone", body["reason"])
        elif name == "link.down":
            peer.route_down(route)

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        raise AssertionError("workers are not called")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        raise AssertionError("agents open no streams")
