"""A router with an agent, the jobs that a load needs, and clients of all kinds."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from tests.faults import clients
from tests.faults.load import Load
from tests.support.processes import Agent, Router, processes_with, start_agent, wait_until

__all__ = ["Amount", "Stand", "sandboxes"]

HERE = Path(__file__).parent
JOBS = HERE.parent / "jobs"
MIB = 1024 * 1024
_SLEEP = "exec sleep 86400"
_COUNTER = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"


@dataclass(frozen=True)
class Amount:
    """How much of everything.

    Attributes:
        size: bytes of a transfer.
        rate: bytes per second of each transfer.
        lasting: seconds after which WebSockets and followers of logs begin again.
    """

    size: int = 16 * MIB
    rate: float = 8.0 * MIB
    websockets: int = 30
    waits: int = 20
    creators: int = 2
    smalls: int = 1
    lasting: float = inf


@dataclass
class Stand:
    """A router, its agent, their jobs and a load.

    Attributes:
        bytes_job: path of a job that runs `job_server`.
        fast_job: path of a job that runs ``fast_server``.
        waited: infos of jobs whose waits were answered.
    """

    router: Router
    agent: Agent
    marks: Path
    bytes_job: str = ""
    fast_job: str = ""
    sleeper: str = ""
    counter: str = ""
    waited: list[dict[str, Any]] = field(default_factory=list)
    broker: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self) -> None:
        """Start the jobs of the load."""
        router, agent = self.router, self.agent.uid
        self.broker = router.child("broker")
        self.bytes_job = router.serve(agent, HERE / "job_server.py")
        self.fast_job = router.serve(agent, JOBS / "fast_server.py")
        self.sleeper = self.run("sleeper", _SLEEP)
        self.counter = self.run("counter", _COUNTER)

    def run(self, name: str, command: str) -> str:
        """Start a shell command as a job without a server; its path."""
        path = self.router.create(self.agent.uid, name)
        self.router.start(path, ["sh", "-c", command], port_expected_count=0)
        return path

    def transfers(self, load: Load, amount: Amount, count: int = 1) -> None:
        """Uploads and downloads of jobs and files."""
        url, job, size, rate = self.router.url, self.bytes_job, amount.size, amount.rate
        load.add("download", clients.download(url, job, size, rate), count)
        load.add("download chunked", clients.download(url, job, size, rate, chunked=True), count)
        load.add("upload", clients.upload(url, job, size, rate), count)
        load.add("upload chunked", clients.upload(url, job, size, rate, chunked=True), count)
        load.add("file", clients.file_round_trip(url, job, size, rate), count)

    def everything(self, load: Load, amount: Amount) -> None:
        """All kinds of clients."""
        url = self.router.url
        self.transfers(load, amount)
        self.echoes_and_logs(load, amount.websockets, amount.lasting)
        self.wait_everywhere(load, amount.waits)
        load.add("sse", clients.events(url, self.fast_job, 50, 20))
        load.add("small", clients.small_request(url, f"{self.fast_job}/http/", fresh=True), amount.smalls)
        events = clients.Events(url)
        creations = clients.Creations(url, self.agent.uid, self.marks)
        load.add("create", creations.one_round, amount.creators)
        load.at_end(creations.check)
        load.at_end(lambda: events.check(creations.names))

    def echoes_and_logs(self, load: Load, websockets: int, lasting: float = inf) -> None:
        """WebSockets, and two followers of a log."""
        load.add("websocket", clients.echo(self.router.url, self.fast_job, seconds=lasting), websockets)
        load.add("log", clients.follow_log(self.router.url, self.counter, lasting), 2)

    def wait_everywhere(self, load: Load, count: int) -> None:
        """`count` waits for the end of one job, known to be parked."""
        load.park("wait", clients.wait_for(self.router.url, self.sleeper, self.note), count)
        wait_until(lambda: self.metric("waits") == count, what="waits park")

    def restart_agent(self, launch: Callable[..., Any], **sets: Any) -> Agent:
        """Another agent in the directory of the first."""

        def start(_directory: object) -> Agent:
            return start_agent(self.agent.directory, self.router, **sets)

        agent: Agent = launch(start)
        return agent

    def note(self, info: dict[str, Any]) -> None:
        """Remember an answered wait."""
        with self._lock:
            self.waited.append(info)

    def end_waits(self, count: int) -> None:
        """Let the job that is waited for end: each of the `count` waits is answered, once."""
        assert not self.waited, "waits were answered before the end"
        answer = self.router.post(self.sleeper + "/signal", {"signal": "TERM"})
        assert answer.status_code == 200, answer.text
        wait_until(lambda: len(self.waited) >= count, what=f"{count} waits are answered, not {len(self.waited)}")
        assert all((info["state"], info["signal"]) == ("FINISHED", "SIGTERM") for info in self.waited)

    def renew_waits(self, load: Load, count: int) -> None:
        """End the job that is waited for, and have another one waited for."""
        self.end_waits(count)
        request = self.router.post(self.sleeper + "/remove")
        assert request.status_code == 200, request.text
        self.waited.clear()
        self.sleeper = self.run("sleeper", _SLEEP)
        self.wait_everywhere(load, count)

    def kill_broker(self) -> None:
        """SIGKILL to the broker."""
        self.router.kill_broker()

    def linked_again(self, deadline: float = 20.0) -> None:
        """Wait until a broker, another one than at the last call, has its agent and workers back."""
        known = self.broker

        def back() -> bool:
            self.broker = self.router.child("broker")
            log = self.router.log.read_text()
            started = log.rfind(f"prouter.broker[{self.broker}] event=broker_started")
            return self.broker != known and started >= 0 and "event=link_up" in log[started:]

        wait_until(back, deadline, "the agent is linked to a new broker")

    def metric(self, name: str) -> float:
        """A figure of the broker's."""
        found = re.search(rf"^prouter_broker_{name} (\S+)$", self.router.get("/metrics").text, re.MULTILINE)
        assert found is not None, f"no figure {name}"
        return float(found[1])

    def open_connections(self) -> int:
        """Connections to the job at `bytes_job`, besides the one that asks."""
        return int(self.router.get(self.bytes_job + "/http/open").text)

    def pids_of_job(self, path: str) -> list[int]:
        """Living processes of a job."""
        return processes_with(f"PROUTER_JOB_ID={path.rsplit('/', 1)[1]}")

    def jobs(self) -> list[str]:
        """Paths of the jobs that `serve` started."""
        return [self.bytes_job, self.fast_job, self.sleeper, self.counter]

    def assert_nothing_left(self) -> None:
        """Remove the jobs: no process and no sandbox may be left."""
        paths = self.jobs()
        for path in paths:
            assert self.router.post(path + "/remove").status_code == 200
        assert sandboxes(self.agent) == []
        assert [pid for path in paths for pid in self.pids_of_job(path)] == []


def sandboxes(agent: Agent) -> list[str]:
    """Names of the sandboxes in the directory of the agent's jobs."""
    root = agent.directory / "jobs"
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.exists() else []
