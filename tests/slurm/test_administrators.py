"""What administrators of a cluster do to jobs: suspend and requeue them, drain nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
import requests

from tests.slurm.cluster import NEEDS_SLURM
from tests.slurm.site import Site, lives, running_site
from tests.support.processes import wait_until

pytestmark = NEEDS_SLURM

SERVER = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(1, jobs__slurm__poll=0.5) as site:
        yield site


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    yield
    site.cluster.run("scontrol", "update", "nodename=n1", "state=resume", check=False)
    site.remove_all()
    wait_until(lambda: not site.cluster.jobs())


def _told_suspended(site: Site, path: str) -> bool:
    """Whether requests to a job are told that it is suspended; earlier ones get no answer."""
    try:
        answer = site.router.get(f"{path}/http/", timeout=3)
    except requests.Timeout:
        return False
    return answer.status_code == 502 and "Slurm has suspended job" in answer.text


def test_a_suspended_job_says_so_and_goes_on(site: Site) -> None:
    path = site.start(*SERVER, expose={"port": "assign"})
    number = site.number(path)
    site.cluster.run("scontrol", "suspend", number)
    wait_until(lambda: _told_suspended(site, path), 60)
    site.cluster.run("scontrol", "resume", number)
    wait_until(lambda: site.router.get(f"{path}/http/", timeout=60).status_code == 200, 60)


def test_a_suspended_job_is_stopped_without_delay(site: Site) -> None:
    path = site.start(*SERVER, expose={"port": "assign"})
    pid = site.info(path)["pid"]
    site.cluster.run("scontrol", "suspend", site.number(path))
    wait_until(lambda: _told_suspended(site, path), 60)
    began = time.monotonic()
    answer = site.router.post(f"{path}/stop", {"grace": 1}, timeout=60)
    assert (answer.status_code, answer.json()["reason"]) == (200, "stopped")
    assert time.monotonic() - began < 10
    wait_until(lambda: not lives(pid))


def test_a_requeued_job_is_cancelled_and_not_run_again(site: Site) -> None:
    path = site.start("sh", "-c", "echo once; sleep 1000")
    number = site.number(path)
    site.cluster.run("scontrol", "update", f"jobid={number}", "requeue=1")
    site.cluster.run("scontrol", "requeue", number)
    info = site.until(path, state="FINISHED", deadline=20)
    assert info["reason"] == "cancelled"
    assert "put it back into its queue" in info["error"]
    wait_until(lambda: site.state(path) == "CANCELLED")
    assert site.router.get(f"{path}/logs/stdout").text == "once\n"


def test_a_drained_node_ends_its_jobs_in_peace_and_comes_back(site: Site) -> None:
    runs = site.start("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 4")
    site.cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    waits = site.start("true", wait=0)
    wait_until(lambda: "DRAINED" in ((site.info(waits)["queue"] or {}).get("reason") or ""))
    (site.cluster.shared / "jobs" / runs.rpartition("/")[2] / "go").touch()
    assert site.until(runs, state="FINISHED")["exit_code"] == 4
    site.cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    assert site.until(waits, state="FINISHED")["exit_code"] == 0


def test_a_shell_that_exits_because_slurm_ended_its_command_was_cancelled(site: Site) -> None:
    """Slurm signals one process after the other: a shell may exit with 143 before the node's program is told."""
    path = site.start("sh", "-c", "sleep 1000; exit $?")
    site.cluster.run("scancel", site.number(path))
    assert site.until(path, state="FINISHED")["reason"] == "cancelled"


def test_a_job_that_exits_like_that_by_itself_has_exited(site: Site) -> None:
    info = site.until(site.start("sh", "-c", "exit 143"), state="FINISHED")
    assert (info["reason"], info["exit_code"]) == ("exited", 143)
