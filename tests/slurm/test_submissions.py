"""Submissions that go wrong: whatever sbatch answers and when, a job runs once or not at all, and its end is right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import NEEDS_SLURM, running_cluster
from tests.slurm.site import WHOLE_NODE, Site
from tests.support.processes import wait_until
from tests.support.programs import program

pytestmark = NEEDS_SLURM

ONCE = ("sh", "-c", "echo once; while [ ! -e go ]; do sleep 0.05; done; exit 7")
UNSPECIFIED = "sbatch: error: Batch job submission failed: Unspecified error"
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


class Sbatch:
    """An sbatch before Slurm's own in the agent's PATH, which does as the test says.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.real = program("sbatch")
        self.script = directory / "script"
        self._gate = directory / "gate"
        directory.mkdir()
        command = directory / "sbatch"
        command.write_text(f'#!/bin/sh\n[ ! -e {self.script} ] || . {self.script}\nexec {self.real} "$@"\n')
        command.chmod(0o755)

    def does(self, text: str) -> None:
        """Run these lines of a shell first; ``$real`` is Slurm's own, ``$script`` the file of these lines."""
        new = self.script.with_suffix(".new")
        new.write_text(f"real={self.real}\nscript={self.script}\n{text}\n")
        new.rename(self.script)

    def comes_late(self) -> None:
        """Say once that the controller has not answered; the submission arrives when `comes` is called."""
        self._gate.unlink(missing_ok=True)
        self.does(
            f"rm $script; cat >$script.late; (while [ ! -e {self._gate} ]; do sleep 0.05; done; "
            f'$real "$@" <$script.late) >/dev/null 2>&1 & echo "{TIMED_OUT}" >&2; exit 1'
        )

    def comes(self) -> None:
        """Let the late submission arrive."""
        self._gate.touch()

    def works(self) -> None:
        """Do as Slurm's own again."""
        self.script.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Site, Sbatch]]:
    with running_cluster() as cluster:
        sbatch = Sbatch(cluster.root / "bin")
        cluster.environment["PATH"] = f"{cluster.root / 'bin'}:{cluster.environment['PATH']}"
        site = Site(cluster)
        try:
            yield site, sbatch
        finally:
            site.close()


@pytest.fixture
def sbatch(place: tuple[Site, Sbatch]) -> Sbatch:
    return place[1]


@pytest.fixture
def site(place: tuple[Site, Sbatch]) -> Iterator[Site]:
    site, sbatch = place
    yield site
    sbatch.works()
    site.remove_all()


def entries(site: Site, path: str) -> list[str]:
    """Slurm's ids of all batch jobs of a job."""
    lines = site.cluster.run("squeue", "-h", "-t", "all", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in lines if line.endswith(":" + path.rpartition("/")[2])]


def go(site: Site, path: str) -> None:
    (site.cluster.shared / "jobs" / path.rpartition("/")[2] / "go").touch()


def test_a_job_runs_although_sbatch_says_that_it_failed(site: Site, sbatch: Sbatch) -> None:
    path = site.create()
    ran = site.cluster.shared / "jobs" / path.rpartition("/")[2] / "ran"
    sbatch.does(f'$real "$@"; while [ ! -e {ran} ]; do sleep 0.05; done; echo "{UNSPECIFIED}" >&2; exit 1')
    script = f"echo once; touch {ran}; {ONCE[2].removeprefix('echo once; ')}"
    site.starting(path, "sh", "-c", script, wait=0)
    site.until(path, state="RUNNING")
    go(site, path)
    info = site.until(path, state="FINISHED")
    assert (info["exit_code"], info["reason"]) == (7, "exited")
    assert site.router.get(f"{path}/logs/stdout").text == "once\n"


def test_a_start_that_sbatch_refused_never_runs(site: Site, sbatch: Sbatch) -> None:
    fillers = site.fill()
    sbatch.does(f'$real "$@"; echo "{UNSPECIFIED}" >&2; exit 1')
    path = site.create()
    answer = site.router.post(f"{path}/start", {"args": list(ONCE), "env": {}, "resources": WHOLE_NODE})
    assert answer.status_code == 502
    assert answer.json()["detail"].count("failed to start") == 1
    assert "could not be started" not in answer.json()["detail"]
    site.remove(*fillers)
    wait_until(lambda: site.state(path) in ("CANCELLED", "FAILED"))
    assert site.router.get(f"{path}/logs/stdout").text == ""
    assert site.info(path)["reason"] == "start_failed"


def test_a_job_runs_as_the_submission_that_came_late(site: Site, sbatch: Sbatch) -> None:
    fillers = site.fill()
    sbatch.comes_late()
    path = site.start(*ONCE, wait=0, resources=WHOLE_NODE)
    (second,) = wait_until(lambda: entries(site, path))  # The agent has not found the first one, and asks again.
    site.cluster.run("scontrol", "hold", second)
    sbatch.comes()
    wait_until(lambda: len(entries(site, path)) == 2)
    site.remove(*fillers)
    info = site.until(path, state="RUNNING")
    site.cluster.run("scontrol", "release", second)
    wait_until(lambda: "FAILED" in site.cluster.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", second))
    # Slurm says for some time that the second one has ended, which costs the first one nothing.
    other = site.start("true", wait=5)
    site.until(other, state="FINISHED")
    assert [site.info(path)[name] for name in ("state", "pid")] == [info["state"], info["pid"]]
    go(site, path)
    assert site.until(path, state="FINISHED")["exit_code"] == 7
    assert site.router.get(f"{path}/logs/stdout").text == "once\n"
    assert len(entries(site, path)) == 2


@pytest.mark.parametrize("which", ["second", "first"])
def test_two_submissions_that_begin_together_run_a_job_once(site: Site, sbatch: Sbatch, which: str) -> None:
    fillers = site.fill()
    sbatch.comes_late()
    path = site.start(*ONCE, wait=0, resources=WHOLE_NODE)
    wait_until(lambda: entries(site, path))
    sbatch.comes()
    wait_until(lambda: len(entries(site, path)) == 2)
    both = sorted(entries(site, path), key=int)
    site.cluster.run("scontrol", "update", f"jobid={both[which == 'second']}", "nice=-100")
    site.remove(*fillers)
    site.until(path, state="RUNNING")
    go(site, path)
    assert site.until(path, state="FINISHED")["exit_code"] == 7
    assert site.router.get(f"{path}/logs/stdout").text == "once\n"
    assert sorted(entries(site, path), key=int) == both


def test_a_start_that_was_answered_outlives_the_agent(site: Site) -> None:
    for _ in range(4):
        path = site.start("sh", "-c", "echo once; exit 7", wait=0)
        site.agent.popen.kill()
        site.agent.popen.wait(30)
        site.start_agent()
        assert site.until(path, state="FINISHED")["exit_code"] == 7
        assert site.router.get(f"{path}/logs/stdout").text == "once\n"


def test_a_job_that_was_ended_while_it_began_is_not_submitted_again(site: Site) -> None:
    paths = [site.start("sleep", "100", wait=0) for _ in range(6)]
    enders = []
    for number, path in enumerate(paths):
        wait_until((site.files(path) / "claim").exists)
        ending = site.cluster.run if number % 2 else site.router.post
        arguments = ["scancel", site.number(path)] if number % 2 else [f"{path}/stop", {"grace": 5}]
        enders.append(threading.Thread(target=ending, args=arguments))
        enders[-1].start()
    for ender in enders:
        ender.join()
    for path in paths:
        assert site.until(path, state="FINISHED")["reason"] in ("cancelled", "stopped", "start_failed")
        assert len(entries(site, path)) == 1
