"""Connections to a job's server reach processes of that job and nobody else, also when its port changes hands.

With real jobs of a manager in this process, whose own sockets are therefore the agent's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as green

from prouter.agent.relays.connections import Connections
from prouter.jobs import State
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.job_manager import SERVER, Managers, Observed, python
from tests.support.keeper import until
from tests.support.loopback import Loopback

SWITCH = """
import os, signal, socket, sys
where = sys.argv[1]
def listen():
    if where.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        if os.path.lexists(where):
            os.unlink(where)
        server.bind(where)
    else:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if "share" in sys.argv:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", int(where)))
    server.listen(0 if "silent" in sys.argv else 16)
    return server
def switch(*_):
    global server
    if server is None:
        server = listen()
    else:
        server.close()
        server = None
        if os.path.exists("instead"):
            os.unlink(where)
            (os.symlink if open("instead").read() == "symlink" else os.link)(open("target").read(), where)
    with open("told", "w") as file:
        file.write("open" if server else "closed")
server = listen()
signal.signal(signal.SIGUSR1, switch)
while True:
    if server is None or "silent" in sys.argv:
        signal.pause()
        continue
    server.settimeout(0.05)
    try:
        peer, _ = server.accept()
    except (OSError, AttributeError):
        continue
    peer.settimeout(5)
    if peer.recv(65536):
        peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nmine")
    peer.close()
"""
"""A server at a port or path that answers "mine", and closes or opens its socket at SIGUSR1."""


class Site:
    """A manager and the agent's end of streams to its jobs."""

    def __init__(self, observed: Observed) -> None:
        self.jobs = observed
        servers = observed.manager.servers
        self.connections = Connections(observed.manager.record, servers, servers.exiting)
        self.loopback = Loopback(lambda stream, target: self.connections.open(stream, target["job"]))

    def start(self, code: str, *arguments: str, port: str = "assign") -> str:
        uid = self.jobs.create()
        address = "{socket}" if port == "unix" else "{port}"
        record = self.jobs.start(uid, *python(code, address, *arguments), expose={"port": port})
        assert record.state is State.RUNNING
        return uid

    def open(self, uid: str) -> StreamIO:
        stream = StreamIO(self.loopback.open({"kind": "http", "job": uid}))
        stream.write_all(b"GET /secret HTTP/1.0\r\n\r\n")
        return stream

    def ask(self, uid: str) -> str:
        """What a request to the job gets: the body, or the code of the stream's reset."""
        try:
            return read(self.open(uid))
        except StreamReset as reset:
            return reset.code

    def switch(self, uid: str, told: str) -> None:
        root = self.jobs.manager.sandbox(uid).root
        self.jobs.manager.signal(uid, "USR1")
        until(lambda: (root / "told").exists() and (root / "told").read_text() == told)

    def port(self, uid: str) -> int:
        return int((self.jobs.manager.record(uid).endpoint or {})["port"])


def read(stream: StreamIO) -> str:
    return b"".join(iter(lambda: stream.read(65536), b"")).decode().rpartition("\r\n\r\n")[2]


class Stranger:
    """A listener of this process, which is not the job's; keeps what it is sent."""

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self.heard = b""
        self.accepted = 0
        self._server = gevent.spawn(self._serve)

    def _serve(self) -> None:
        while True:
            peer, _ = self.listener.accept()
            self.accepted += 1
            with peer:
                self.heard += peer.recv(65536)
                peer.sendall(b"HTTP/1.0 200 OK\r\n\r\ntheirs")

    def close(self) -> None:
        self._server.kill()
        self.listener.close()


def at_port(port: int, *, share: bool = False) -> Stranger:
    listener = green.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    return Stranger(listener)


def at_path(path: str) -> Stranger:
    listener = green.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    return Stranger(listener)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    managers = Managers(tmp_path)
    with gevent.Timeout(60):
        made = Site(managers.open())
        yield made
        made.connections.close()
    managers.close()


def test_a_port_that_another_program_takes_over_is_not_the_jobs_any_more(site: Site) -> None:
    uid = site.start(SWITCH)
    assert [site.ask(uid) for _ in range(3)] == ["mine"] * 3
    site.switch(uid, "closed")
    assert site.ask(uid) == "refused"
    stranger = at_port(site.port(uid))
    assert [site.ask(uid) for _ in range(3)] == ["refused"] * 3
    assert stranger.heard == b""
    stranger.close()
    site.switch(uid, "open")
    assert site.ask(uid) == "mine"


def test_a_port_that_another_job_takes_over_is_that_jobs(site: Site) -> None:
    first = site.start(SWITCH)
    site.switch(first, "closed")
    port = site.port(first)
    second = site.jobs.create()
    code = SERVER.replace("sys.argv[1]", f"'{port}'")
    site.jobs.start(second, *python(code), expose={"port": "detect"})
    assert site.ask(second) == "/secret"
    assert site.ask(first) == "refused"


def test_a_connection_that_waits_in_a_backlog_does_not_go_to_whoever_listens_next(site: Site) -> None:
    """The kernel sends its SYN again after a second, to whoever listens then."""
    uid = site.start(SWITCH, "silent")
    port = site.port(uid)
    fillers = [socket.socket() for _ in range(2)]
    for filler in fillers:  # The backlog takes one connection.
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    waiting = site.open(uid)
    until(lambda: len(site.connections) == 1)
    site.switch(uid, "closed")
    stranger = at_port(port)
    with pytest.raises(StreamReset, match="another program's"):
        read(waiting)
    assert stranger.accepted > 0, "the kernel did send it there"
    assert stranger.heard == b""
    stranger.close()
    for filler in fillers:
        filler.close()


def test_a_port_that_a_program_shares_is_nobodys(site: Site) -> None:
    uid = site.start(SWITCH, "share")
    assert site.ask(uid) == "mine"
    stranger = at_port(site.port(uid), share=True)
    until(lambda: [site.ask(uid) for _ in range(4)] == ["refused"] * 4)
    stranger.close()
    until(lambda: site.ask(uid) == "mine")


@pytest.mark.parametrize("how", ["symlink", "link"])
def test_a_unix_socket_that_leads_elsewhere_is_refused(site: Site, tmp_path: Path, how: str) -> None:
    uid = site.start(SWITCH, port="unix")
    assert site.ask(uid) == "mine"
    stranger = at_path(str(tmp_path / "docker.sock"))
    root = site.jobs.manager.sandbox(uid).root
    (root / "target").write_text(str(tmp_path / "docker.sock"))
    (root / "instead").write_text(how)
    site.switch(uid, "closed")
    assert [site.ask(uid) for _ in range(2)] == ["refused"] * 2
    assert stranger.heard == b""
    stranger.close()
    (root / "instead").unlink()
    site.switch(uid, "open")
    assert site.ask(uid) == "mine"


def test_a_server_whose_parent_called_listen_and_ended_is_the_jobs(site: Site) -> None:
    code = SERVER.replace("server.listen()", "server.listen()\nif os.fork():\n    os._exit(0)")
    outer = f"import os, sys, time\nif os.fork():\n    time.sleep(1000)\n{code}"
    for port in ("unix", "assign"):
        assert site.ask(site.start(outer, port=port)) == "/secret"


def test_a_removed_job_leaves_nothing(site: Site) -> None:
    uid = site.start(SERVER)
    assert site.ask(uid) == "/secret"
    site.jobs.manager.signal(uid, "KILL")
    until(lambda: site.jobs.manager.record(uid).ended)
    site.connections.job_ended(site.jobs.manager.record(uid))
    assert uid not in site.jobs.runner._machine._servers._jobs
