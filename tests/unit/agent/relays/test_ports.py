"""Relays to ports of a job: what the worker is told before the first byte, against real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as green

from prouter.agent.relays import connections
from prouter.agent.relays.connections import Connections
from prouter.errors import NotFound
from prouter.jobs import JobRecord, State
from prouter.runners.local.listening_sockets import survey
from prouter.runners.local.servers import Look, Servers
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.loopback import Loopback, wait_for


class Site:
    """One job whose processes are this one."""

    def __init__(self) -> None:
        self.pids = [os.getpid()]
        self.record = JobRecord("j1", "c1", "job", State.RUNNING)
        self.servers = Servers(lambda _job: Look(survey(self.pids), assigned=None))
        self.connections = Connections(self._find, self.servers, lambda _job: False)
        self.loopback = Loopback(
            lambda stream, target: self.connections.open_port(stream, target["job"], target["port"])
        )

    def _find(self, uid: str) -> JobRecord:
        if uid != self.record.uid:
            raise NotFound(f"job '{uid}' is not found")
        return self.record

    def open(self, port: Any, job: str = "j1") -> StreamIO:
        return StreamIO(self.loopback.open({"kind": "tcp", "job": job, "port": port}))

    def refusal(self, port: Any, job: str = "j1") -> tuple[str, str]:
        with pytest.raises(StreamReset) as caught:
            self.open(port, job).read_preface()
        return caught.value.code, caught.value.detail


@pytest.fixture
def site() -> Iterator[Site]:
    with gevent.Timeout(20):
        made = Site()
        yield made
        made.connections.close()
        made.servers.close()


@pytest.fixture
def listener() -> Iterator[Any]:
    with green.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(8)
        yield made


def port_of(listener: Any) -> int:
    return int(listener.getsockname()[1])


def test_the_preface_comes_before_the_jobs_first_byte(site: Site, listener: Any) -> None:
    stream = site.open(port_of(listener))
    job = listener.accept()[0]
    job.sendall(b"banner")
    assert stream.read_preface() == {"ok": True}
    assert stream.read_exactly(6) == b"banner"
    stream.write_all(b"hello")
    stream.close()
    assert job.recv(100) == b"hello"
    assert job.recv(100) == b""
    job.close()
    assert stream.read() == b""
    wait_for(lambda: len(site.connections) == 0 and site.loopback.open_streams == 0)


@pytest.mark.parametrize("port", [0, -1, 65536, "x", "http", None, 1.5, b"http", [1], True])
def test_what_is_no_port_is_refused(site: Site, port: Any) -> None:
    code, _text = site.refusal(port)
    assert code == "no_such_port"


def test_a_port_of_another_program_gets_no_connection(site: Site, listener: Any) -> None:
    site.pids = []
    code, text = site.refusal(port_of(listener))
    assert (code, "it listens on no port there" in text) == ("no_such_port", True)
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_port_that_is_closed_before_the_connection_is_refused(
    site: Site, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = site.servers.find

    def find_and_close(job: str, port: int) -> Any:
        address = found(job, port)
        listener.close()
        return address

    monkeypatch.setattr(site.servers, "find", find_and_close)
    assert site.refusal(port_of(listener))[0] == "no_such_port"


def test_a_port_that_another_program_takes_between_look_and_connection_hears_nothing(
    site: Site, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = site.servers.find
    strangers: list[Any] = []

    def find_and_replace(job: str, port: int) -> Any:
        address = found(job, port)
        listener.close()
        strangers.append(socket.create_server(("127.0.0.1", port)))
        site.pids = []
        return address

    monkeypatch.setattr(site.servers, "find", find_and_replace)
    code, text = site.refusal(port_of(listener))
    assert (code, "another program's" in text) == ("no_such_port", True)
    (stranger,) = strangers
    with stranger, stranger.accept()[0] as peer:
        assert peer.recv(100) == b""


def test_a_job_that_takes_no_connection_is_given_up(site: Site, listener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.2)
    listener.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port_of(listener)))
    assert site.refusal(port_of(listener))[0] == "connect_timeout"
    for filler in fillers:
        filler.close()


def test_jobs_that_do_not_run_have_no_ports(site: Site, listener: Any) -> None:
    assert site.refusal(1, "other")[0] == "no_job"
    site.record = JobRecord("j1", "c1", "job", State.FINISHED, exit_code=0)
    assert site.refusal(port_of(listener))[0] == "not_running"


def test_a_stream_that_ends_during_the_look_leaves_nothing(site: Site, listener: Any) -> None:
    site.open(port_of(listener)).reset("client_gone", "the client disconnected")
    wait_for(lambda: len(site.connections) == 0 and site.loopback.open_streams == 0)
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
