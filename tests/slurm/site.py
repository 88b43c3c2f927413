"""A router and an agent whose jobs run on a test cluster, used over HTTP as users do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.slurm.cluster import CPUS, Cluster, running_cluster
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

__all__ = ["WHOLE_NODE", "Site", "ancestors", "environment_of", "lives", "running_site"]

WHOLE_NODE = {"cpus": CPUS}
"""Resources that only an idle node has."""


class Site:
    """A cluster, and an agent on it with its router.

    Args:
        settings: of the agent, ``section__key=value``.
    """

    def __init__(self, cluster: Cluster, **settings: Any) -> None:
        self.cluster = cluster
        self._settings = {"jobs__runner": "slurm", "jobs__root": str(cluster.shared / "jobs"), **settings}
        self.router: Router = start_router(cluster.root / "router", workers=1)
        self.agent = self.start_agent()

    def start_agent(self) -> Agent:
        """Start the agent, again after `kill_agent`."""
        prefix = ["env", *(f"{name}={self.cluster.environment[name]}" for name in ("PATH", "SLURM_CONF"))]
        self.agent = start_agent(self.cluster.root / "agent", self.router, prefix=prefix, **self._settings)
        return self.agent

    def close(self) -> None:
        self.agent.stop()
        self.router.stop()

    def create(self, name: str = "test") -> str:
        """Create a job; return its path."""
        return self.router.create(self.agent.uid, name)

    def start(self, *args: str, wait: float | None = None, **options: Any) -> str:
        """Create and start a job; return its path."""
        path = self.create()
        self.starting(path, *args, wait=wait, **options)
        return path

    def starting(self, path: str, *args: str, wait: float | None = None, **options: Any) -> dict[str, Any]:
        """Start a job, which by default reports no ports; return its info."""
        query = "" if wait is None else f"?wait={wait}"
        body = {"args": list(args), "env": {}, "port_expected_count": 0, **options}
        answer = self.router.post(f"{path}/start{query}", body, timeout=60)
        assert answer.status_code in (200, 202), answer.text
        info: dict[str, Any] = answer.json()
        return info

    def info(self, path: str) -> dict[str, Any]:
        answer = self.router.get(f"{path}/info")
        assert answer.status_code == 200, answer.text
        info: dict[str, Any] = answer.json()
        return info

    def until(self, path: str, deadline: float = 40.0, **expected: Any) -> dict[str, Any]:
        """Wait until the info of a job has these values; return it."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.update(self.info(path))
            return all(seen[name] == value for name, value in expected.items())

        try:
            wait_until(reached, deadline, f"{path}: {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {seen}; {self.agent.log_end()}") from None
        return seen

    def remove(self, *paths: str) -> None:
        for path in paths:
            answer = self.router.post(f"{path}/remove", timeout=60)
            assert answer.status_code in (200, 204), answer.text

    def fill(self, **options: Any) -> list[str]:
        """Start jobs that together leave no processor free; return their paths."""
        paths: list[str] = []
        # What is completing now would leave its processors free soon.
        wait_until(lambda: not self.cluster.run("squeue", "-h", "-t", "completing"))
        while True:
            free = self.cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%C").split()  # allocated/idle/other/total
            idle = max(int(node.split("/")[1]) for node in free)
            if idle == 0:
                return paths
            paths.append(self.start("sleep", "100", resources={"cpus": idle}, **options))

    def remove_all(self, *, but: str = "") -> None:
        """Remove all jobs that are left, except one."""
        jobs = self.router.get("/jobs").json()["jobs"]
        self.remove(*(job["path"] for job in jobs if job["state"] != "CLOSED" and job["path"] != but))

    def number(self, path: str) -> str:
        """Slurm's id of a job."""
        (line,) = (line for line in self._queue() if line[1].endswith(":" + path.rpartition("/")[2]))
        return line[0]

    def state(self, path: str) -> str:
        """Slurm's state of a job; empty if Slurm does not know it."""
        return next((line[2] for line in self._queue() if line[1].endswith(":" + path.rpartition("/")[2])), "")

    def files(self, path: str) -> Path:
        """The directory that a job's node shares with the agent."""
        return self.cluster.shared / "jobs.slurm" / "jobs" / path.rpartition("/")[2]

    def _queue(self) -> list[Sequence[str]]:
        return [line.split() for line in self.cluster.run("squeue", "-h", "-t", "all", "-o", "%i %k %T").splitlines()]


@contextlib.contextmanager
def running_site(nodes: int = 2, **settings: Any) -> Iterator[Site]:
    """Start a cluster with a router and an agent; end all of it afterwards."""
    with running_cluster(nodes) as cluster:
        site = Site(cluster, **settings)
        try:
            yield site
        finally:
            site.close()


def ancestors(pid: int, count: int) -> list[int]:
    """Pids of a process's parent, its parent's parent and so on."""
    found = []
    for _ in range(count):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def lives(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def environment_of(pid: int) -> dict[str, str]:
    """The variables with which a process was started."""
    text = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes())
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
