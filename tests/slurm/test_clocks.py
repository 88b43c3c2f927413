"""Nodes whose clocks are wrong: what is measured is measured by the agent's clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.slurm.cluster import NEEDS_SLURM, running_cluster
from tests.slurm.site import Site

pytestmark = NEEDS_SLURM

PYTHON = """\
#!{python}
# Runs a script with another clock: the node's program, and by `sys.executable` its keeper.
import runpy, sys, time
from pathlib import Path

own, wrong = time.time, float(Path({wrong!r}).read_text())
time.time = lambda: own() + wrong
sys.executable = __file__
place = next(place for place, word in enumerate(sys.argv) if word.endswith(".py") and place)
sys.argv = sys.argv[place:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_cluster(1) as cluster:
        python = cluster.root / "python"
        python.write_text(PYTHON.format(python=sys.executable, wrong=str(cluster.root / "wrong")))
        python.chmod(0o755)
        site = Site(cluster, jobs__slurm__python=str(python))
        try:
            yield site
        finally:
            site.close()


@pytest.fixture(params=[-7200, -200, 7200])
def wrong(site: Site, request: pytest.FixtureRequest) -> Iterator[int]:
    """Seconds by which the nodes' clocks are ahead."""
    (site.cluster.root / "wrong").write_text(str(request.param))
    yield request.param
    site.remove_all()


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_a_limit_of_time_counts_from_the_start(site: Site, wrong: int) -> None:
    ends = site.start("sh", "-c", "sleep 1; exit 3", limits={"timeout": 60})
    lasts = site.start("sleep", "1000", limits={"timeout": 3})
    assert site.until(ends, state="FINISHED")["exit_code"] == 3
    assert site.until(lasts, deadline=20, state="FINISHED")["reason"] == "timeout"


def test_times_are_the_agents(site: Site, wrong: int) -> None:
    clock = site.start("date", "+%s")
    began = time.time()
    info = site.until(site.start("sleep", "1"), state="FINISHED")
    created, started, finished = (_moment(info[name]) for name in ("created_at", "started_at", "finished_at"))
    assert began - 1 < created <= started < finished < time.time() + 1
    assert site.until(clock, state="FINISHED")["exit_code"] == 0


def test_times_of_a_job_whose_agent_was_away(site: Site, wrong: int) -> None:
    path = site.start("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 9")
    started = site.info(path)["started_at"]
    site.agent.popen.kill()
    site.agent.popen.wait(30)
    (Path(site.cluster.shared) / "jobs" / path.rpartition("/")[2] / "go").touch()
    site.start_agent()
    info = site.until(path, state="FINISHED")
    assert info["exit_code"] == 9
    assert _moment(info["started_at"]) == pytest.approx(_moment(started), abs=0.1)
    assert _moment(started) <= _moment(info["finished_at"]) < time.time() + 1
