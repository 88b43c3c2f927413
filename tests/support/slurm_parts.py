"""The Slurm runner's parts without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prouter.runners import Exit, Queued, Reports, Spawned
from prouter.runners.slurm.commands import QueueEntry
from prouter.runners.slurm.controller import Controller
from prouter.runners.slurm.ends import Ends
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.nodes import Nodes
from prouter.runners.slurm.options import SlurmOptions
from prouter.runners.slurm.starts import Starts
from prouter.runners.slurm.table import Table
from tests.support.keeper import until

__all__ = ["SPAWNED", "UID", "Cluster", "Told"]

UID = "a" * 32
SPAWNED: dict[str, Any] = {"pid": 7, "start_time": 8, "started_at": 9.0, "node": "n1"}


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
