"""Jobs on a cluster that seem lost: how they ended is found late, or their nodes return after they were given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from prouter.keeper.wire import Decoder, encode
from prouter.runners import Exit
from prouter.runners.slurm import ends
from prouter.runners.slurm.job import JobState
from prouter.runners.slurm.node import job_files
from tests.support.slurm_parts import SPAWNED, UID, Cluster

EXIT = {
    "exit_code": 0, "signal": None, "reason": None, "cpu_seconds": 1.0, "max_rss": 2, "at": 5.0, "node": "n1",
    "asked_to_end": False,
}  # fmt: skip


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
