"""Relays to a job's server: bytes, ends, resets and limits, against real sockets."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as green

from prouter.agent.relays import connections
from prouter.agent.relays.connections import Connections
from prouter.errors import NotFound
from prouter.fabric.mux import DEFAULT_WINDOW
from prouter.jobs import JobRecord, Reason, State
from prouter.processes.process_tree import is_exiting
from prouter.runners.local.listening_sockets import survey
from prouter.runners.local.servers import Look, Servers
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.loopback import Loopback, wait_for

MIB = 1024 * 1024


class Place:
    """One job with a server of the test's own: what it accepts ends up in `accepted`."""

    def __init__(self, listener: Any, endpoint: dict[str, Any]) -> None:
        self.listener = listener
        self.record = JobRecord("j1", "c1", "job", State.RUNNING, endpoint=endpoint)
        servers = Servers(lambda _job: Look(survey([os.getpid()]), assigned=None))
        self.connections = Connections(self._find, servers, self._exiting)
        self.loopback = Loopback(lambda stream, target: self.connections.open(stream, target["job"]))

    def _find(self, uid: str) -> JobRecord:
        if uid != self.record.uid:
            raise NotFound(f"job '{uid}' is not found")
        return self.record

    def _exiting(self, _uid: str) -> bool:
        return self.record.pid is not None and is_exiting(self.record.pid)

    def connect(self) -> tuple[StreamIO, Any]:
        """A stream, and the job's end of its connection."""
        stream = self.open()
        return stream, self.accept()

    def open(self, job: str = "j1") -> StreamIO:
        return StreamIO(self.loopback.open({"kind": "http", "job": job}))

    def accept(self) -> Any:
        return self.listener.accept()[0]

    def is_clean(self) -> bool:
        return len(self.connections) == 0 and self.loopback.open_streams == 0


@pytest.fixture
def place() -> Iterator[Place]:
    with gevent.Timeout(20), green.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        made = Place(listener, {"port": listener.getsockname()[1]})
        yield made
        made.connections.close()


@pytest.fixture
def unix_place(tmp_path: Path) -> Iterator[Place]:
    with gevent.Timeout(20), green.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(64)
        made = Place(listener, {"socket": str(tmp_path / "s")})
        yield made
        made.connections.close()


def read_all(source: Callable[[int], bytes]) -> bytes:
    return b"".join(iter(lambda: source(65536), b""))


def send(stream: StreamIO, data: bytes) -> None:
    stream.write_all(data)
    stream.close()


def reset_of(stream: StreamIO) -> StreamReset:
    with pytest.raises(StreamReset) as caught:
        read_all(stream.read)
    return caught.value


@pytest.mark.parametrize("which", ["place", "unix_place"])
def test_bytes_and_ends_pass_both_ways(which: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(which)
    stream, job = place.connect()
    stream.write_all(b"question")
    stream.close()
    assert read_all(job.recv) == b"question"
    job.sendall(b"answer")
    job.close()
    assert read_all(stream.read) == b"answer"
    wait_for(place.is_clean)


def test_the_job_may_finish_first_and_still_read(place: Place) -> None:
    stream, job = place.connect()
    job.sendall(b"early answer")
    job.shutdown(socket.SHUT_WR)
    assert read_all(stream.read) == b"early answer"
    stream.write_all(b"late question")
    stream.close()
    assert read_all(job.recv) == b"late question"
    wait_for(place.is_clean)


def test_bulk_both_ways_at_once_is_whole(place: Place) -> None:
    there, back = os.urandom(12 * MIB), os.urandom(12 * MIB)
    stream, job = place.connect()

    def answer() -> None:
        job.sendall(back)
        job.shutdown(socket.SHUT_WR)

    gevent.spawn(send, stream, there)
    gevent.spawn(answer)
    received = gevent.spawn(read_all, job.recv)
    assert read_all(stream.read) == back
    assert received.get() == there
    wait_for(place.is_clean)


def test_a_reader_that_stalls_holds_the_job_back_and_nobody_else(place: Place) -> None:
    slow, slow_job = place.connect()
    fast, fast_job = place.connect()
    sender = gevent.spawn(slow_job.sendall, bytes(64 * MIB))
    wait_for(lambda: slow.buffered == DEFAULT_WINDOW)
    fast_job.sendall(b"quick")
    assert fast.read() == b"quick"
    assert slow.buffered == DEFAULT_WINDOW
    assert not sender.ready()
    slow.reset("client_gone")
    with pytest.raises(OSError):
        sender.get()


def test_a_job_that_does_not_read_holds_the_worker_back(place: Place) -> None:
    stream, job = place.connect()
    writer = gevent.spawn(stream.write_all, bytes(64 * MIB))
    relay = place.loopback.agent.muxes[b"worker"].streams[stream.stream.sid].handler
    wait_for(lambda: relay._backlog and sum(map(len, relay._backlog)) >= DEFAULT_WINDOW // 2)
    assert not writer.ready()
    read = gevent.spawn(lambda: sum(len(data) for data in iter(lambda: job.recv(MIB), b"")))
    writer.get()
    stream.close()
    assert read.get() == 64 * MIB


def test_a_lost_path_only_pauses(place: Place) -> None:
    data = os.urandom(8 * MIB)
    stream, job = place.connect()
    echo = gevent.spawn(lambda: [job.sendall(part) for part in iter(lambda: job.recv(65536), b"")])
    gevent.spawn(send, stream, data)
    received = stream.read_exactly(MIB)
    for _ in range(5):
        place.loopback.cut()
        gevent.sleep(0.01)
        place.loopback.mend()
        received += stream.read_exactly(MIB)
    received += stream.read_exactly(2 * MIB)
    assert received == data
    echo.get()
    job.close()
    assert stream.read() == b""
    wait_for(place.is_clean)


def test_a_refused_connection_says_so(place: Place) -> None:
    place.listener.close()
    stream = place.open()
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")
    reset = reset_of(stream)
    assert reset.code == "refused"
    assert "refused the connection" in reset.detail
    wait_for(place.is_clean)


def test_a_missing_unix_socket_is_refused(unix_place: Place) -> None:
    os.unlink(unix_place.record.endpoint["socket"])  # type: ignore[index]
    assert reset_of(unix_place.open()).code == "refused"


def test_a_full_unix_backlog_is_waited_for(unix_place: Place) -> None:
    unix_place.listener.listen(0)
    streams = [unix_place.open() for _ in range(4)]
    for number, stream in enumerate(streams):
        stream.write_all(b"%d" % number)
    came = sorted(unix_place.accept().recv(10) for _ in streams)
    assert came == [b"0", b"1", b"2", b"3"]


def test_a_job_that_never_accepts_is_a_connect_timeout(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(connections, "_SWEEP", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        place.record = JobRecord("j1", "c1", "job", State.RUNNING, endpoint={"port": full.getsockname()[1]})
        streams = [place.open() for _ in range(4)]
        for stream in streams:
            stream.write_all(b"hello")
        wait_for(lambda: any(stream.stream.reset_code for stream in streams))
        codes = {stream.stream.reset_code for stream in streams}
    assert codes == {None, "connect_timeout"}


def test_a_reset_by_the_job_comes_after_what_it_said(place: Place) -> None:
    stream, job = place.connect()
    job.sendall(b"half an ans")
    job.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    job.close()
    assert stream.read_exactly(11) == b"half an ans"
    assert reset_of(stream).code == "job_reset"
    wait_for(place.is_clean)


def test_an_answer_before_the_question_ends_is_delivered(place: Place) -> None:
    stream, job = place.connect()
    job.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    job.close()
    with pytest.raises(StreamReset, match="reset the connection"):
        stream.write_all(bytes(16 * MIB))
    assert read_all(stream.read) == b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    wait_for(place.is_clean)


def test_a_worker_that_is_gone_closes_the_jobs_connection(place: Place) -> None:
    _stream, job = place.connect()
    place.loopback.worker_gone()
    assert job.recv(1) == b""
    assert len(place.connections) == 0


def test_a_job_that_does_not_read_learns_of_a_reset_at_once(place: Place) -> None:
    stream, job = place.connect()
    while stream.stream.write(bytes(MIB)):
        gevent.sleep(0.02)  # until the kernel takes no more and the window is full
    stream.reset("client_gone")
    wait_for(place.is_clean)
    poll = select.poll()
    poll.register(job.fileno(), 0)
    wait_for(lambda: poll.poll(0))
    with pytest.raises(ConnectionResetError):
        read_all(job.recv)


@pytest.mark.parametrize(("signal", "exit_code"), [("SIGKILL", None), (None, 1), (None, 0)])
def test_a_job_that_dies_ends_no_answer_unless_it_exits_well(
    place: Place, signal: str | None, exit_code: int | None
) -> None:
    process = subprocess.Popen(["sleep", "0"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    place.record = replace(place.record, pid=process.pid)
    stream, job = place.connect()
    job.sendall(b"half")
    job.close()
    assert stream.read(4) == b"half"
    gevent.sleep(0.05)
    assert not stream.finished
    reason = Reason.SIGNALED if signal else Reason.EXITED
    ended = replace(place.record, state=State.FINISHED, reason=reason, exit_code=exit_code, signal=signal)
    process.wait()
    place.connections.job_ended(ended)
    if exit_code == 0:
        assert stream.read(1) == b""
        stream.close()
    else:
        assert reset_of(stream).detail == ended.ending
    wait_for(place.is_clean)


def test_a_job_that_goes_on_without_its_first_process_ends_its_answers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_DYING", 0.02)
    process = subprocess.Popen(["sleep", "0"])
    process.wait()
    place.record = replace(place.record, pid=process.pid)
    stream, job = place.connect()
    job.close()
    assert stream.read(1) == b""
    stream.close()
    wait_for(place.is_clean)


def test_a_reset_stream_closes_the_jobs_connection(place: Place) -> None:
    stream, job = place.connect()
    stream.write_all(b"x")
    assert job.recv(1) == b"x"
    stream.reset("client_gone")
    assert job.recv(1) == b""
    wait_for(place.is_clean)


@pytest.mark.parametrize(
    ("job", "change", "code", "text"),
    [
        ("nix", {}, "no_job", "job 'nix' is not found"),
        ("j1", {"state": State.PENDING, "endpoint": None}, "not_running", "not running yet: PENDING"),
        ("j1", {"endpoint": None}, "not_running", "has no HTTP server"),
        ("j1", {"state": State.FINISHED, "reason": Reason.EXITED, "exit_code": 3}, "not_running", "exited with code 3"),
    ],
)
def test_what_cannot_be_connected_says_why(
    place: Place, job: str, change: dict[str, Any], code: str, text: str
) -> None:
    fields: dict[str, Any] = {"state": State.RUNNING, "endpoint": {"port": 1}, **change}
    place.record = JobRecord("j1", "c1", "job", **fields)
    reset = reset_of(place.open(job))
    assert reset.code == code
    assert text in reset.detail


def test_connections_that_outlive_their_job_are_reset_with_its_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SWEEP", 0.05)
    stream, _held_by_somebody_else = place.connect()
    place.connections.job_ended(JobRecord("j1", "c1", "job", State.FINISHED, reason=Reason.EXITED, exit_code=1))
    reset = reset_of(stream)
    assert reset.code == "job_ended"
    assert reset.detail == "the job has ended: exited with code 1"
    wait_for(place.is_clean)


def test_what_an_ended_job_said_is_still_delivered_to_a_slow_reader(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SWEEP", 0.02)
    stream, job = place.connect()
    job.setblocking(False)
    sent = 0
    while True:
        try:
            sent += socket.socket.send(job._sock, bytes(MIB))
        except BlockingIOError:
            if stream.buffered == DEFAULT_WINDOW:
                break
            gevent.sleep(0.01)
    job.close()
    place.connections.job_ended(JobRecord("j1", "c1", "job", State.FINISHED, reason=Reason.EXITED, exit_code=0))
    for _ in range(5):
        gevent.sleep(0.02)
    assert len(read_all(stream.read)) == sent > MIB


def test_no_descriptor_left_is_told_as_overload(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("prouter.agent.relays.http.socket.socket", exhausted)
    assert reset_of(place.open()).code == "overloaded"
    wait_for(place.is_clean)


def test_relays_leave_no_descriptor_behind(place: Place) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = descriptors()
    for _ in range(200):
        stream, job = place.connect()
        stream.write_all(b"q")
        stream.close()
        job.recv(1)
        job.sendall(b"a")
        job.close()
        assert read_all(stream.read) == b"a"
    wait_for(place.is_clean)
    assert descriptors() <= before
