"""Jobs on a cluster that seem lost: how they ended is found late, or their nodes return after they were given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from prouter.keeper.wire import Decoder, encode
from prouter.runners import Exit, Queued, Reports, Spawned
from prouter.runners.slurm import ends
from prouter.runners.slurm.commands import QueueEntry
from prouter.runners.slurm.controller import Controller
from prouter.runners.slurm.ends import Ends
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.nodes import Nodes
from prouter.runners.slurm.options import SlurmOptions
from prouter.runners.slurm.starts import Starts
from prouter.runners.slurm.table import Table
from tests.support.keeper import until

UID = "a" * 32
SPAWNED: dict[str, Any] = {"pid": 7, "start_time": 8, "started_at": 9.0, "node": "n1"}
EXIT = {
    "exit_code": 0, "signal": None, "reason": None, "cpu_seconds": 1.0, "max_rss": 2, "at": 5.0, "node": "n1",
    "asked_to_end": False,
}  # fmt: skip


class Told(Reports):
    """What the agent is told."""

    def __init__(self) -> None:
        self.ends: list[Exit] = []

    def queued(self, queued: Queued) -> None:
        raise AssertionError("no job waits")

    def running(self, spawned: Spawned) -> None:
        raise AssertionError("the agent knows that it runs")

    def exited(self, end: Exit) -> None:
        self.ends.append(end)

    def port(self, job: str, port: int) -> None:
        raise AssertionError("no job reports a port")


class Cluster:
    """The runner's parts, and one job that runs and whose node is not connected. Nobody looks at a queue by itself."""

    def __init__(self, directory: Path) -> None:
        self.told = Told()
        self.table = Table(directory)
        self.table.open(self.told)
        self.controller = Controller(1.0)
        follower = Follower(self.controller, "tag", 1.0, lambda: self.table, lambda *_: None, lambda _: None)
        starts = Starts(self.table, self.controller, follower, SlurmOptions(), agent="tag", code=directory)
        self.ends = Ends(self.table, self.controller, follower, starts, "tag")
        self.nodes = Nodes(self.table, follower, starts, self.ends, self.told)
        self.job: Job = self.table.add(UID, {}, None)
        self.job.directory.mkdir()
        for state in (JobState.SUBMITTING, JobState.QUEUED, JobState.RUNNING):
            self.job.change(state)
        self.job.number, self.job.told, self.job.spawned = 1, True, Spawned(UID, **SPAWNED)

    def look(self, state: str) -> None:
        """See this state in Slurm's queue."""
        self.ends.observe(self.job, QueueEntry(UID, 1, state, "n1", None, "name", None), 0.0)

    def ended(self) -> list[Exit]:
        """The ends of which the agent was told, once it was told one."""
        until(lambda: self.told.ends)
        return self.told.ends

    def close(self) -> None:
        self.table.close()
        self.controller.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


class Node:
    """A node's end of a connection to the agent."""

    def __init__(self, cluster: Cluster) -> None:
        self._own, other = socket.socketpair()
        self._own.settimeout(5)
        self._decoder = Decoder()
        hello = {"job": UID, "kind": "control", "node": "n1", "number": 1}
        self._serving = gevent.spawn(cluster.nodes.serve, other, hello, [], Decoder())

    def tell(self, event: str, end: dict[str, Any] | None = None) -> None:
        self._own.sendall(encode({"event": event, "spawned": SPAWNED, "exit": end}))

    def asked(self) -> list[str]:
        """The operations that it is asked for next; none if the agent has closed the connection."""
        data = self._own.recv(65536)
        return [message["op"] for message in self._decoder.feed(data)] if data else []

    def close(self) -> None:
        self._own.close()
        self._serving.get(timeout=5)


def test_a_node_that_returns_with_a_job_that_was_given_up_kills_it(cluster: Cluster) -> None:
    cluster.table.ended(cluster.job, Exit(UID, None, None, "agent_lost", 0.0, 0, 1.0))
    node = Node(cluster)
    node.tell("hello")
    assert node.asked() == ["kill"]
    node.tell("exited", {**EXIT, "exit_code": None, "signal": "SIGKILL"})
    assert node.asked() == []
    node.close()
    assert [end.reason for end in cluster.ended()] == ["agent_lost"]


def test_a_node_that_has_just_started_a_job_that_was_given_up_kills_it(cluster: Cluster) -> None:
    cluster.table.ended(cluster.job, Exit(UID, None, None, "agent_lost", 0.0, 0, 1.0))
    node = Node(cluster)
    node.tell("spawned")
    assert node.asked() == ["kill"]
    node.close()


def test_a_job_that_runs_is_left_alone_when_its_node_returns(cluster: Cluster) -> None:
    node = Node(cluster)
    node.tell("hello")
    node.tell("exited", EXIT)
    assert node.asked() == []
    node.close()
    assert [end.exit_code for end in cluster.ended()] == [0]


def test_an_end_that_is_seen_late_is_no_loss(cluster: Cluster) -> None:
    cluster.look("COMPLETED")
    assert cluster.job.state is JobState.RUNNING
    job_files.write(str(cluster.job.directory), job_files.EXIT, EXIT)
    cluster.look("COMPLETED")
    assert [(end.exit_code, end.reason) for end in cluster.ended()] == [(0, None)]


def test_an_end_that_is_never_seen_is_a_loss(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_WRITTEN", 0.05)
    cluster.look("FAILED")
    assert cluster.job.state is JobState.RUNNING
    gevent.sleep(0.06)
    cluster.look("FAILED")
    assert [end.reason for end in cluster.ended()] == ["agent_lost"]


def test_a_reason_that_slurm_gives_needs_no_file(cluster: Cluster) -> None:
    cluster.look("NODE_FAIL")
    assert [end.reason for end in cluster.ended()] == ["node_failed"]
