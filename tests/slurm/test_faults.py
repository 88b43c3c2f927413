"""Faults on a Slurm cluster: whatever dies is found again, nothing runs twice, and no end is lost."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import NEEDS_SLURM
from tests.slurm.site import WHOLE_NODE, Site, ancestors, lives, running_site
from tests.support.processes import wait_until

pytestmark = NEEDS_SLURM

SERVER = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as site:
        yield site


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    """No test leaves jobs, or daemons that are away."""
    yield
    for daemon in (site.cluster.controller, *site.cluster.daemons.values()):
        if not daemon.alive:
            site.cluster.restart(daemon)
    site.remove_all()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_all_jobs_are_found_again_after_the_agent(site: Site, signum: signal.Signals) -> None:
    new = site.create()
    served = site.start(*SERVER, expose={"port": "assign"})
    pid = site.info(served)["pid"]
    ends = site.start("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 9")
    site.fill()
    waits = site.start("sh", "-c", "echo once; exit 7", wait=0, resources=WHOLE_NODE)
    taken_back = site.start("true", wait=0, resources=WHOLE_NODE)
    wait_until(lambda: site.state(waits) == site.state(taken_back) == "PENDING")
    site.agent.popen.send_signal(signum)
    site.agent.popen.wait(30)
    (site.cluster.shared / "jobs" / ends.rpartition("/")[2] / "go").touch()
    wait_until(lambda: site.state(ends) == "FAILED")
    assert lives(pid)
    site.start_agent()
    assert site.info(new)["state"] == "NEW"
    assert site.info(waits)["phase"] == "queued"
    info = site.until(ends, state="FINISHED")
    assert (info["exit_code"], info["reason"]) == (9, "exited")
    assert site.router.get(f"{served}/http/").status_code == 200
    assert site.info(served)["pid"] == pid
    site.remove(taken_back)
    wait_until(lambda: site.state(taken_back) == "CANCELLED")
    kept = {new, served, ends, waits}
    site.remove(*(job["path"] for job in site.router.get("/jobs").json()["jobs"] if job["path"] not in kept))
    assert site.until(waits, state="FINISHED")["exit_code"] == 7
    assert site.router.get(f"{waits}/logs/stdout").text == "once\n"


def test_a_killed_keeper_takes_its_job_along(site: Site) -> None:
    path = site.start("sh", "-c", "setsid sleep 1000 & wait")
    pid = site.info(path)["pid"]
    os.kill(ancestors(pid, 1)[0], signal.SIGKILL)
    info = site.until(path, state="FINISHED")
    assert (info["reason"], info["exit_code"], info["signal"]) == ("agent_lost", None, None)
    assert not lives(pid)


def test_a_killed_node_program_takes_its_job_along(site: Site) -> None:
    path = site.start("sleep", "1000")
    pid = site.info(path)["pid"]
    os.kill(ancestors(pid, 2)[1], signal.SIGKILL)
    info = site.until(path, state="FINISHED")
    assert info["reason"] == "agent_lost"
    assert "Slurm says: FAILED" in info["error"]
    wait_until(lambda: not lives(pid))
    left = f"prouter-{path.rpartition('/')[2][:8]}-*"
    # All nodes of this machine have one /tmp: the next job, of whichever test, deletes what this one has left.
    site.until(site.start("true"), state="FINISHED")
    assert not list(Path(tempfile.gettempdir()).glob(left))


def test_a_killed_slurmd_that_returns_costs_nothing(site: Site) -> None:
    path = site.start(*SERVER, expose={"port": "assign"})
    daemon = site.cluster.daemons[site.info(path)["node"]]
    daemon.end()
    assert site.router.get(f"{path}/http/").status_code == 200
    site.cluster.restart(daemon)
    assert site.router.get(f"{path}/http/").status_code == 200
    assert site.router.post(f"{path}/stop", {"grace": 5}).json()["reason"] == "stopped"


def test_a_lost_node_is_the_reason(site: Site) -> None:
    path = site.start("sleep", "1000")
    info = site.info(path)
    site.cluster.run("scontrol", "update", f"nodename={info['node']}", "state=down", "reason=test")
    end = site.until(path, state="FINISHED")
    # Slurm refuses that if the node has returned by itself.
    site.cluster.run("scontrol", "update", f"nodename={info['node']}", "state=resume", check=False)
    assert end["reason"] == "node_failed"
    wait_until(lambda: not lives(info["pid"]))


def test_nothing_is_lost_or_doubled_while_slurms_controller_is_away(site: Site) -> None:
    script = ("sh", "-c", "echo once; exit 6")
    running = site.start("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 4")
    submitted = site.start("sh", "-c", "echo once; sleep 0.2; exit 6", wait=0)
    site.cluster.controller.end()
    unanswered = site.start(*script, wait=0)
    assert site.info(unanswered)["phase"] == "queued"
    ended = site.start(*script, wait=0)
    assert site.router.post(f"{ended}/stop", {"grace": 5}).json()["reason"] == "stopped"
    (site.cluster.shared / "jobs" / running.rpartition("/")[2] / "go").touch()
    assert site.until(running, state="FINISHED")["exit_code"] == 4
    site.cluster.restart(site.cluster.controller)
    for path in (submitted, unanswered):
        info = site.until(path, state="FINISHED", deadline=60)
        assert (info["exit_code"], info["reason"]) == (6, "exited"), f"{info} {site.agent.log_end(8000)}"
        assert site.router.get(f"{path}/logs/stdout").text == "once\n"
    assert site.info(ended)["exit_code"] is None
    assert site.router.get(f"{ended}/logs/stdout").text == ""
