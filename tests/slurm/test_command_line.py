"""What `prouter run` tells whoever runs jobs on a cluster for the first time."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import NEEDS_SLURM
from tests.slurm.site import Site, running_site
from tests.support.processes import wait_until

pytestmark = NEEDS_SLURM


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(1) as site:
        yield site


def _run(site: Site, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "prouter", "run", "--agent", site.agent.uid, *words]
    environment = {**os.environ, "PROUTER_URL": site.router.url}
    return subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)


def test_it_says_that_the_cluster_ended_the_job(site: Site) -> None:
    command = _run(site, "--", "sleep", "1000")
    wait_until(lambda: [job["state"] for job in site.router.get("/jobs").json()["jobs"]] == ["RUNNING"], 40)
    site.cluster.run("scancel", *site.cluster.jobs())
    _, told = command.communicate(timeout=60)
    assert (command.returncode, told) == (143, b"prouter: the job was ended: it was cancelled in Slurm\n")


def test_it_says_in_a_terminal_why_the_job_waits(site: Site) -> None:
    controller, terminal = pty.openpty()
    command = _run(site, "--resource", "cpus=99", "--", "true", stderr=terminal)
    os.close(terminal)
    seen = b""
    while b"PartitionConfig" not in seen:
        seen += os.read(controller, 4096)
    assert b"prouter: the job waits in its cluster's queue: PartitionConfig" in seen
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    os.close(controller)
    wait_until(lambda: not site.cluster.jobs())
