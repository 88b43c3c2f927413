"""The agent as a process, with a real broker, real jobs and a worker that lives in the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
import requests
import zmq

from prouter.errors import AgentUnavailable, Forbidden
from prouter.fabric.frames import HELLO, REFUSE, VERSION, Frame, decode, encode, pack_body, unpack_body
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.fabric_peers import BrokerProcess, FakeWorker, until
from tests.support.processes import Agent, Process, processes_with

MIB = 1024 * 1024
JOBS = Path(__file__).parent.parent / "jobs"
SERVER = [sys.executable, str(JOBS / "fast_server.py")]
SLEEPER = ["sleep", "1000"]


class Stage:
    """Brokers, workers and agents, all ended after the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stops: list[Callable[[], Any]] = []
        self._count = 0

    def broker(self, name: str = "router-1", **sets: Any) -> BrokerProcess:
        process = BrokerProcess(self.directory / name, **{"identity.uid": name, **sets})
        self._stops.append(process.stop)
        return process

    def worker(self, broker: BrokerProcess) -> FakeWorker:
        worker = FakeWorker(broker.ipc)
        self._stops.append(worker.stop)
        return worker

    def agent(self, *brokers: BrokerProcess, home: str = "agent", **sets: Any) -> Agent:
        """Start an agent that dials the brokers, and wait until it is ready. A `home` keeps its state for the next."""
        values = {"identity.uid": "agent-1", "fabric.heartbeat": 0.5, **_dotted(sets)}
        if brokers:
            values["client.address"] = [broker.endpoint.removeprefix("tcp://") for broker in brokers]
        agent = Agent(self.directory / home, "127.0.0.1:1", values)
        self._stops.append(agent.stop)
        return agent

    def listening_agent(self, home: str = "listener", **sets: Any) -> tuple[Agent, str]:
        """Start an agent that only listens; return it and its ``host:port``."""
        agent = self.agent(home=home, client__enabled=False, server__enabled=True, server__port=0, **sets)
        found = agent.ready.split("listen=tcp://")[1].split()[0]
        return agent, found

    def failing_agent(self, broker: BrokerProcess, **sets: Any) -> Process:
        """Start an agent that fails before it is ready."""
        values = {
            "client.address": broker.endpoint.removeprefix("tcp://"),
            "client.reconnect_delay": 0.1,
            "state.dir": str(self.directory / "failing"),
            "identity.uid": "agent-1",
            **_dotted(sets),
        }
        argv = [sys.executable, "-m", "prouter", "agent"]
        for key, value in values.items():
            argv += ["--set", f"{key}={value!r}"]
        process = Process(argv, self.directory / "failing.log")
        self._stops.append(process.stop)
        return process

    def clear(self) -> None:
        for stop in reversed(self._stops):
            stop()


def _dotted(sets: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in sets.items()}


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="pra-"))
    stage = Stage(directory)
    try:
        with gevent.Timeout(50):
            yield stage
    finally:
        stage.clear()
        for log in directory.rglob("*.log"):
            print(f"--- {log}\n{log.read_text()}")
        shutil.rmtree(directory, ignore_errors=True)


BY_UID = {"type": "uid", "uid": "agent-1"}


def run(worker: FakeWorker, args: list[str], agent: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    """A job that was created and started."""
    job = worker.create(agent or BY_UID)
    request = {"args": args, "env": {}, **({} if "expose" in request else {"port_expected_count": 0}), **request}
    started: dict[str, Any] = worker.call("jobs.start", **at(job), request=request, key=uuid.uuid4().hex)["job"]
    return {**started, "connection": job["connection"]}


def serve(worker: FakeWorker, agent: dict[str, Any] | None = None) -> dict[str, Any]:
    """A job with an HTTP server."""
    return run(worker, SERVER, agent, expose={"port": "assign"})


def at(job: dict[str, Any]) -> dict[str, Any]:
    return {"connection": job["connection"], "job": job["uid"]}


def opened(worker: FakeWorker, job: dict[str, Any], kind: str, **target: Any) -> StreamIO:
    mux = worker.peer.mux(job["connection"].encode())
    return StreamIO(mux.open({"kind": kind, "job": job["uid"], **target}))


def get(worker: FakeWorker, job: dict[str, Any], path: str) -> StreamIO:
    stream = opened(worker, job, "http")
    stream.write_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return stream


def answer_head(stream: StreamIO) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.read(1)
    return head


def info(worker: FakeWorker, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = worker.call("jobs.info", usage=False, **at(job))["job"]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- the ordinary life ------------------------------------------------------------------------------------------------


def test_a_job_is_created_started_used_and_removed(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker, properties__colour="blue")
    worker = stage.worker(broker)
    assert agent.uid == "agent-1"
    job = serve(worker)
    assert job["state"] == "RUNNING"
    assert job["agent"]["properties"] == {"colour": "blue"}
    stream = get(worker, job, "/bytes/3000000")
    assert b"200 OK" in answer_head(stream)
    assert len(stream.read_exactly(3_000_000)) == 3_000_000
    stream.close()
    assert worker.call("jobs.info", usage=True, **at(job))["job"]["rss_bytes"] > 0
    worker.call("jobs.remove", **at(job))
    assert not alive(job["pid"])
    assert not list((stage.directory / "agent" / "jobs").glob("[0-9a-f]*"))
    until(lambda: worker.of("job.removed"))


def test_files_and_logs_of_a_job_are_served(stage: Stage) -> None:
    broker = stage.broker()
    stage.agent(broker)
    worker = stage.worker(broker)
    job = run(worker, ["sh", "-c", "until [ -e go ]; do sleep 0.05; done; echo done"])
    log = opened(worker, job, "log", name="stdout", follow=True)
    log.close()
    assert log.read_preface()["offset"] == 0
    upload = opened(worker, job, "file.write", path=b"go", size=0)
    upload.close()
    upload.read_preface()
    assert upload.read_preface()["size"] == 0
    assert log.read_exactly(5) == b"done\n"
    assert log.read() == b""
    assert worker.call("jobs.wait", until=time.monotonic() + 5, **at(job))["ended"]


def test_drain_refuses_new_jobs_until_resumed(stage: Stage) -> None:
    broker = stage.broker()
    stage.agent(broker)
    worker = stage.worker(broker)
    job = run(worker, SLEEPER)
    worker.call("agents.drain", connection=job["connection"], on=True)
    with pytest.raises(AgentUnavailable, match="drain"):
        worker.create(BY_UID)
    assert info(worker, job)["state"] == "RUNNING"
    worker.call("agents.drain", connection=job["connection"], on=False)
    assert worker.create(BY_UID)["state"] == "NEW"


def test_routers_share_an_agent_and_its_jobs(stage: Stage) -> None:
    one, two = stage.broker("router-1"), stage.broker("router-2")
    stage.agent(one, two)
    here, there = stage.worker(one), stage.worker(two)
    job = serve(here)
    until(lambda: any(event["record"]["state"] == "RUNNING" for event in there.of("job")))
    until(lambda: there.peer.muxes.get(job["connection"].encode()))
    stream = get(there, job, "/")
    assert b"200 OK" in answer_head(stream)
    stream.close()
    one.kill()
    assert info(there, job)["state"] == "RUNNING"


def test_a_worker_that_is_gone_leaves_no_connection_to_the_job(stage: Stage) -> None:
    broker = stage.broker()
    stage.agent(broker)
    stays, leaves = stage.worker(broker), stage.worker(broker)
    job = run(stays, [sys.executable, "-c", _REPORTS_EOF], expose={"port": "assign"})
    until(lambda: leaves.peer.muxes.get(job["connection"].encode()))
    opened(leaves, job, "http").write_all(b"hello")
    log = opened(stays, job, "log", name="stdout", follow=True)
    log.close()
    log.read_preface()
    assert log.read_exactly(6) == b"hello\n"
    leaves.stop()
    assert log.read_exactly(4) == b"EOF\n"


_REPORTS_EOF = """
import os, socket
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    peer, _ = listener.accept()
    data = peer.recv(100)
    if data:
        print(data.decode(), flush=True)
        print("EOF" if not peer.recv(100) else "more", flush=True)
"""


def test_a_job_that_dies_in_the_middle_of_its_answer_breaks_the_stream_at_once(stage: Stage) -> None:
    broker = stage.broker()
    stage.agent(broker)
    worker = stage.worker(broker)
    job = serve(worker)
    stream = get(worker, job, "/bytes/300000000")
    answer_head(stream)
    os.kill(job["pid"], signal.SIGKILL)
    started = time.monotonic()
    received = 0
    with contextlib.suppress(StreamReset):
        while data := stream.read():
            received += len(data)
    assert received < 300_000_000
    assert stream.stream.reset_code in (None, "job_reset", "job_ended")
    assert time.monotonic() - started < 5
    until(lambda: info(worker, job)["signal"] == "SIGKILL")
    with pytest.raises(StreamReset, match="killed by SIGKILL") as caught:
        get(worker, job, "/").read()
    assert caught.value.code == "not_running"


def test_an_idle_agent_uses_no_cpu_and_leaks_nothing(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker)
    worker = stage.worker(broker)
    job = serve(worker)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{agent.pid}/fd"))

    before = descriptors()
    for _ in range(100):
        stream = get(worker, job, "/")
        answer_head(stream)
        stream.close()
    until(lambda: descriptors() <= before)
    broker.kill()
    broker.start()
    until(lambda: worker.peer.ready and worker.links and worker.links[0]["up"])
    until(lambda: descriptors() <= before)
    used = _cpu(agent.pid)
    gevent.sleep(2)
    assert _cpu(agent.pid) - used < 0.06


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- lost paths and restarts ------------------------------------------------------------------------------------------


def test_transfers_survive_a_killed_broker(stage: Stage) -> None:
    broker = stage.broker()
    stage.agent(broker)
    worker = stage.worker(broker)
    job = serve(worker)
    data = os.urandom(MIB) * 24
    upload = opened(worker, job, "file.write", path=b"f", size=len(data))
    download = get(worker, job, f"/bytes/{len(data)}")
    writer = gevent.spawn(upload.write_all, data)
    answer_head(download)
    download.read_exactly(2 * MIB)
    for _ in range(2):
        broker.kill()
        broker.start()
        download.read_exactly(4 * MIB)
    download.read_exactly(len(data) - 10 * MIB)
    writer.get()
    upload.close()
    upload.read_preface()
    assert upload.read_preface()["size"] == len(data)
    check = opened(worker, job, "file.read", path=b"f")
    check.close()
    assert check.read_preface()["size"] == len(data)
    assert b"".join(iter(check.read, b"")) == data
    assert info(worker, job)["confirmed"]
    assert info(worker, job)["state"] == "RUNNING"


def test_orphaned_jobs_are_ended_and_cleaned_up(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker, jobs__orphan_timeout=0.5)
    worker = stage.worker(broker)
    job = run(worker, SLEEPER)
    broker.kill()
    until(lambda: not alive(job["pid"]))
    until(lambda: not list((stage.directory / "agent" / "jobs").glob("[0-9a-f]*")))
    assert agent.popen.poll() is None
    broker.start()
    until(lambda: worker.peer.ready)
    until(lambda: info(worker, job)["reason"] == "agent_lost")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_is_told_to_end_takes_its_jobs_along(stage: Stage, number: signal.Signals) -> None:
    broker = stage.broker()
    agent = stage.agent(broker)
    worker = stage.worker(broker)
    job = run(worker, ["sh", "-c", "sleep 1000 & exec sleep 1000"])
    agent.popen.send_signal(number)
    until(lambda: agent.popen.poll() is not None, 10)
    assert agent.popen.returncode == 0
    assert not processes_with(job["uid"])
    assert not list((stage.directory / "agent" / "jobs").glob("[0-9a-f]*"))
    until(lambda: info(worker, job)["state"] == "FINISHED")
    assert info(worker, job)["reason"] == "agent_lost"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_kept_jobs_go_on_under_the_same_path_with_the_next_agent(stage: Stage, number: signal.Signals) -> None:
    broker = stage.broker()
    first = stage.agent(broker, jobs__keep_for=30)
    worker = stage.worker(broker)
    job = serve(worker)
    stream = get(worker, job, "/")
    answer_head(stream)
    first.popen.send_signal(number)
    until(lambda: first.popen.poll() is not None, 10)
    stage.agent(broker, jobs__keep_for=30)
    with pytest.raises(StreamReset):
        stream.read_exactly(MIB)
    until(lambda: info(worker, job)["confirmed"])
    assert info(worker, job)["pid"] == job["pid"]
    again = get(worker, job, "/")
    assert b"200 OK" in answer_head(again)
    again.close()
    worker.call("jobs.remove", **at(job))
    assert not alive(job["pid"])


def test_a_second_agent_with_the_uid_waits_for_the_death_of_the_first(stage: Stage) -> None:
    broker = stage.broker()
    first = stage.agent(broker)
    second = stage.failing_agent(broker)
    until(lambda: "uid_in_use" in second.log_end(), 10)
    first.kill()
    second.wait_line("^ready agent=agent-1")


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_bad_token_ends_an_agent_that_is_to_exit_on_failure(stage: Stage) -> None:
    broker = stage.broker(server__accept_tokens=["right"])
    process = stage.failing_agent(broker, client__token="wrong", client__exit_on_fail=True)
    until(lambda: process.popen.poll() is not None, 10)
    assert process.popen.returncode == 1
    assert "the token is not accepted" in process.log_end()
    assert "wrong" not in process.log_end()


def test_a_refused_agent_tries_again_quietly(stage: Stage) -> None:
    broker = stage.broker(server__accept_tokens=["right"])
    process = stage.failing_agent(broker, client__token="wrong")
    until(lambda: broker.log.read_text().count("bad_token") >= 3, 10)
    assert process.popen.poll() is None
    assert process.log_end().count("event=link_failed") == 1


def test_an_unreachable_router_ends_an_agent_that_is_to_exit_on_failure(stage: Stage) -> None:
    broker = stage.broker()
    broker.kill()
    process = stage.failing_agent(broker, client__exit_on_fail=True, fabric__heartbeat=0.2)
    until(lambda: process.popen.poll() is not None, 10)
    assert process.popen.returncode == 1


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        ({"client__enabled": False}, "no router could ever use the agent"),
        ({"client__address": "nowhere"}, "must be 'host:port'"),
    ],
)
def test_an_agent_that_could_never_be_linked_does_not_start(stage: Stage, sets: dict[str, Any], text: str) -> None:
    broker = stage.broker()
    process = stage.failing_agent(broker, **sets)
    until(lambda: process.popen.poll() is not None, 10)
    assert process.popen.returncode != 0
    assert text in process.log_end()


# -- agents that are dialled ------------------------------------------------------------------------------------------


def test_a_listening_agent_is_used_by_who_knows_its_token(stage: Stage) -> None:
    broker = stage.broker()
    _agent, address = stage.listening_agent(server__accept_tokens=["secret"])
    worker = stage.worker(broker)
    with pytest.raises(Forbidden, match="token"):
        worker.create({"type": "address", "address": address, "token": "wrong"})
    job = serve(worker, {"type": "address", "address": address, "token": "secret"})
    assert job["sender"]["direction"] == "SERVER"
    until(lambda: worker.peer.muxes.get(job["connection"].encode()))
    stream = get(worker, job, "/bytes/20000000")
    answer_head(stream)
    stream.read_exactly(MIB)
    broker.kill()
    broker.start()
    stream.read_exactly(20_000_000 - MIB)
    assert info(worker, job)["state"] == "RUNNING"


def test_an_agent_linked_both_ways_shows_two_connections(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker, server__enabled=True, server__port=0)
    address = agent.ready.split("listen=tcp://")[1].split()[0]
    worker = stage.worker(broker)
    dialled_in = run(worker, SLEEPER)
    dialled_out = run(worker, SLEEPER, {"type": "address", "address": address, "token": ""})
    assert dialled_in["connection"] != dialled_out["connection"]
    modes = {one["uid"]: one["mode"] for one in worker.connections()}
    assert modes == {dialled_in["connection"]: "SERVER", dialled_out["connection"]: "CLIENT"}
    for job in (dialled_in, dialled_out):
        assert info(worker, job)["state"] == "RUNNING"


def test_strangers_are_refused_and_floods_ignored(stage: Stage) -> None:
    agent, address = stage.listening_agent(server__accept_tokens=["secret"])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()

    def connected() -> zmq.Socket[bytes]:
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 3000)
        dealer.connect(f"tcp://{address}")
        return dealer

    hello = {"kind": "router", "uid": "r", "protocol": VERSION, "token": "secret"}
    for body, code in (
        ({**hello, "token": "wrong"}, "bad_token"),
        ({**hello, "token": None}, "bad_token"),
        ({**hello, "protocol": 99}, "bad_version"),
        ({**hello, "kind": "agent"}, "bad_hello"),
        ({**hello, "uid": ""}, "bad_hello"),
    ):
        with connected() as dealer:
            dealer.send_multipart([b"", *encode([Frame(HELLO, payload=pack_body(body))])])
            frame = decode(dealer.recv_multipart()[1:])[0]
            assert frame.type == REFUSE
            assert unpack_body(frame.payload)["code"] == code
    memory = _rss(agent.pid)
    with connected() as dealer:
        for number in range(3000):
            dealer.send_multipart([b"", os.urandom(1000)])
            dealer.send_multipart([b"x" * 32, b"\x20" * 32, b"bulk"])
            dealer.send_multipart([b"", *encode([Frame(HELLO, payload=pack_body({**hello, "uid": str(number)}))])][:1])
        gevent.sleep(0.3)
        assert agent.popen.poll() is None
        assert _rss(agent.pid) - memory < 8 * MIB
    broker = stage.broker()
    worker = stage.worker(broker)
    assert run(worker, SLEEPER, {"type": "address", "address": address, "token": "secret"})["state"] == "RUNNING"


def test_connections_that_say_nothing_keep_no_router_from_linking(stage: Stage) -> None:
    agent, address = stage.listening_agent()
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(400)]
        broker = stage.broker()
        worker = stage.worker(broker)
        job = run(worker, SLEEPER, {"type": "address", "address": address, "token": ""})
        assert job["state"] == "RUNNING"
        until(lambda: sum(_is_closed(one) for one in silent) >= 400 - 256, 20)
    assert agent.popen.poll() is None


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed, whatever it said before."""
    connection.setblocking(False)
    try:
        while data := connection.recv(4096):
            del data
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


# -- the control API --------------------------------------------------------------------------------------------------


def test_the_control_api_tells_and_shuts_down(stage: Stage) -> None:
    broker = stage.broker()
    agent = stage.agent(broker, control__enabled=True)
    url = agent.ready.split("control=")[1].split()[0]
    assert requests.get(f"{url}/info", timeout=5).json()["auth"]["uid"] == "agent-1"
    (connection,) = requests.get(f"{url}/connections/", timeout=5).json()["connections"]
    assert connection["peer"]["auth"]["uid"] == "router-1"
    assert (connection["mode"], connection["up"]) == ("SERVER", True)
    assert requests.get(f"{url}/shutdown", timeout=5).status_code == 405
    page = {"Origin": "http://elsewhere.example"}
    assert requests.post(f"{url}/shutdown", headers=page, timeout=5).status_code == 403
    assert requests.get(f"{url}/nowhere", timeout=5).status_code == 404
    assert requests.post(f"{url}/shutdown", timeout=5).status_code == 200
    until(lambda: agent.popen.poll() is not None, 10)
    assert agent.popen.returncode == 0
