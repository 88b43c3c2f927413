"""The test cluster itself: it runs jobs, several can run at once, and nothing is left of one whose test was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.slurm.cluster import NEEDS_SLURM, running_cluster
from tests.support.processes import processes_with, wait_until

pytestmark = NEEDS_SLURM

_HOLDING = """
import sys, time
from tests.slurm.cluster import running_cluster
with running_cluster() as cluster:
    job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "setsid sleep 600")
    while "RUNNING" not in cluster.run("squeue", "-h", "-o", "%T"):
        time.sleep(0.02)
    print(cluster.root, flush=True)
    sys.stdin.read()
"""


def test_two_clusters_beside_each_other_run_jobs_on_all_nodes() -> None:
    with running_cluster() as one, running_cluster(3) as other:
        assert sorted(one.run("srun", "-N2", "printenv", "SLURMD_NODENAME").split()) == ["n1", "n2"]
        assert len(other.run("srun", "-N3", "printenv", "SLURMD_NODENAME").split()) == 3
        wait_until(lambda: other.jobs() == one.jobs() == [])
    assert not one.root.exists()
    assert processes_with(str(one.root)) == processes_with(str(other.root)) == []


def test_nothing_is_left_when_its_test_is_killed() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDING],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        root = holder.stdout.readline().strip()
        assert processes_with(root)
        os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not Path(root).exists() and not processes_with(root), 30, "files and processes gone")
