"""Helpers for tests of the job manager: managers in the test's process, one after another on one state directory."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as gevent_socket

from prouter.agent.jobs.manager import JobManager
from prouter.jobs import JobRecord, State
from prouter.runners import Setup
from prouter.runners.local.runner import LocalRunner
from tests.support.keeper import alive, until

__all__ = ["CONNECTION", "SERVER", "Managers", "Observed", "get", "new_uid", "python"]

CONNECTION = "c" * 32

SERVER = """
import os, socket, sys
where = sys.argv[1]
if where.startswith("/"):
    server = socket.socket(socket.AF_UNIX); server.bind(where)
else:
    server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(where)))
server.listen()
while True:
    peer, _ = server.accept()
    request = peer.recv(65536).split(b" ")
    if len(request) > 1:
        path = request[1]
        status = b"200 OK" if path.startswith(sys.argv[2].encode() if len(sys.argv) > 2 else b"/") else b"404 No"
        peer.sendall(b"HTTP/1.1 %s\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (status, len(path), path))
    peer.close()
"""
"""A server on the port or socket given first that answers with the path; 404 if that does not begin with the second."""


def python(code: str, *arguments: str) -> list[str]:
    """Return a command that runs Python code and starts fast."""
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def new_uid() -> str:
    """Return a new job uid, as routers make them."""
    return uuid.uuid4().hex


def get(endpoint: dict[str, Any] | None, path: str) -> tuple[int, str]:
    """Send a GET to a job; return status and text of the response."""
    assert endpoint is not None
    if "socket" in endpoint:
        connection = gevent_socket.socket(socket.AF_UNIX)
        connection.connect(endpoint["socket"])
    else:
        connection = gevent_socket.create_connection((endpoint.get("host", "127.0.0.1"), endpoint["port"]))
    connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Observed:
    """A job manager, with all that it announced.

    Args:
        runner: by default a local one.
    """

    def __init__(self, directory: Path, *, keep_for: float = 0, runner: Any = None, **settings: Any) -> None:
        self.records: list[JobRecord] = []
        self.removed: list[JobRecord] = []
        self.root = directory / "jobs"
        self.runner: LocalRunner = runner or LocalRunner(Setup(directory / "state", self.root, keep_for))
        self.manager = JobManager(
            root=self.root,
            runner=self.runner,
            properties=settings.pop("properties", {}),
            on_change=self.records.append,
            on_removed=self.removed.append,
            **settings,
        )

    def states(self, uid: str) -> list[State]:
        """Return the states that were announced for a job, in order."""
        return [record.state for record in self.records + self.removed if record.uid == uid]

    def create(self, name: str = "job") -> str:
        """Create a job; return its uid."""
        uid = new_uid()
        self.manager.create(uid, CONNECTION, name)
        return uid

    def start(self, uid: str, *args: str, **body: Any) -> JobRecord:
        """Start a job with a new request id, and without a port unless `body` says otherwise."""
        if "expose" not in body:
            body.setdefault("port_expected_count", 0)
        with gevent.Timeout(20):
            return self.manager.start(uid, {"args": list(args), "env": {}, **body}, f"start {uid}")

    def run(self, *args: str, **body: Any) -> str:
        """Create and start a job; return its uid."""
        uid = self.create()
        self.start(uid, *args, **body)
        return uid

    def ended(self, uid: str, seconds: float = 8.0) -> JobRecord:
        """Wait until a job is FINISHED; return its record."""
        until(lambda: self.manager.record(uid).ended, seconds)
        return self.manager.record(uid)

    def file(self, uid: str, name: str) -> str:
        """Wait for a file in a job's sandbox that is not empty; return its text."""
        path = self.manager.sandbox(uid).root / name
        until(lambda: path.exists() and path.stat().st_size > 0)
        return path.read_text()

    def output(self, uid: str) -> Any:
        """Return the JSON that a job has printed, which has ended."""
        self.ended(uid)
        return json.loads(self.log(uid))

    def log(self, uid: str, name: str = "stdout") -> bytes:
        """Return what is in a job's log now."""
        log, pieces, position = self.manager.log(uid, name), [], 0
        while (chunk := log.read(position)).data:
            pieces.append(chunk.data)
            position = chunk.end
        return b"".join(pieces)


class Managers:
    """The managers of one test; all but the last have crashed or were closed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Observed] = []

    def open(self, **settings: Any) -> Observed:
        """Open a manager on the test's state directory."""
        one = Observed(self.directory, **settings)
        self.all.append(one)
        one.manager.open()
        return one

    def close(self) -> None:
        """End everything that runs."""
        for one in reversed(self.all):
            one.manager.close(end_jobs=True)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not alive(pid)
