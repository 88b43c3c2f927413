"""An agent with a runner of another distribution: found by its entry point, with a queue, behind a real router."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.runners import distribution

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).parents[1] / "jobs" / "fast_server.py"
SLEEP = ["sleep", "1000"]
NO_SERVER = {"args": SLEEP, "env": {}, "port_expected_count": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a distribution whose entry point is the runner."""
    return distribution(tmp_path_factory.mktemp("site"), guarded="tests.runners.guarded:RUNNER")


@pytest.fixture(scope="module")
def environment(site: Path) -> Iterator[None]:
    """Processes of this module find that distribution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}:{ROOT}")
        yield


class Stage:
    """A router, and an agent whose runner runs one job at a time."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self.router: Router = start_router(directory / "router", workers=1, control__hold=0.2)
        stack.callback(self.router.stop)
        self.agent = self.start()

    def start(self) -> Agent:
        sets: dict[str, Any] = {"jobs__runner": "guarded", "jobs__guarded__slots": 1, "jobs__keep_for": 60}
        agent = start_agent(self.directory / "agent", self.router, **sets, fabric__heartbeat=0.5)
        self._stack.callback(agent.stop)
        return agent

    def info(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.router.get(f"{path}/info").json()
        return found

    def until(self, path: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        wait_until(lambda: condition(self.info(path)), 30)
        return self.info(path)

    def queued(self, *args: str, **body: Any) -> str:
        """Create and start a job that has to wait; return its path."""
        path = self.router.create(self.agent.uid)
        answer = self.router.post(f"{path}/start?wait=0.1", {**NO_SERVER, "args": list(args or SLEEP), **body})
        assert (answer.status_code, answer.json()["state"]) == (202, "NEW")
        self.until(path, lambda info: (info["queue"] or {}).get("reason") == "slots")
        return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, environment: None) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("stage"), stack)


def test_a_server_is_reached_through_the_runner_of_another_package(stage: Stage) -> None:
    path = stage.router.serve(stage.agent.uid, SERVER)
    assert stage.info(path)["phase"] == "ready"
    assert stage.router.get(f"{path}/http/").status_code == 200
    port = stage.info(path)["ports"][0]
    assert stage.router.get(f"{path}/http/").status_code == 200
    assert port > 0
    assert stage.router.post(f"{path}/stop").json()["reason"] == "stopped"
    assert stage.router.post(f"{path}/remove").status_code == 200


def test_a_start_waits_is_told_of_and_runs_when_its_turn_comes(stage: Stage) -> None:
    first = stage.router.create(stage.agent.uid)
    stage.router.start(first, SLEEP, port_expected_count=0)
    waiting = stage.queued(sys.executable, str(SERVER), expose={"port": "assign"})
    info = stage.info(waiting)
    assert (info["queue"], info["node"], info["pid"]) == ({"reason": "slots", "expected_start": None}, None, None)
    assert stage.router.post(f"{waiting}/signal", {"signal": "TERM"}).status_code == 409
    page = stage.router.get(f"{waiting}/http/", headers={"Prefer": "wait=0"}, timeout=60)
    assert (page.status_code, "waits in its cluster's queue (slots)" in page.text) == (503, True)
    assert stage.router.post(f"{waiting}/wait?timeout=0.1").status_code == 202
    assert stage.router.post(f"{first}/remove").status_code == 200
    info = stage.until(waiting, lambda info: info["phase"] == "ready")
    assert (info["state"], info["queue"]) == ("RUNNING", None)
    assert stage.router.get(f"{waiting}/http/").status_code == 200
    assert stage.router.post(f"{waiting}/remove").status_code == 200


@pytest.mark.parametrize("how", ["stop", "remove"])
def test_a_start_that_waits_can_be_given_up(stage: Stage, how: str) -> None:
    first = stage.router.create(stage.agent.uid)
    stage.router.start(first, SLEEP, port_expected_count=0)
    waiting = stage.queued("sh", "-c", "echo started > started")
    assert stage.router.post(f"{waiting}/{how}").status_code == 200
    if how == "stop":
        info = stage.info(waiting)
        assert (info["state"], info["phase"], info["reason"]) == ("FINISHED", "exited", "stopped")
        assert stage.router.get(f"{waiting}/file/started").status_code == 404
        stage.router.post(f"{waiting}/remove")
    assert stage.router.post(f"{first}/remove").status_code == 200


def test_a_start_that_waits_outlives_a_killed_agent(stage: Stage) -> None:
    first = stage.router.create(stage.agent.uid)
    stage.router.start(first, SLEEP, port_expected_count=0)
    waiting = stage.queued("sh", "-c", "echo started >> started; exit 4")
    stage.agent.kill()
    stage.agent = stage.start()
    stage.until(waiting, lambda info: info["confirmed"])
    assert stage.info(waiting)["phase"] == "queued"
    assert stage.info(first)["phase"] == "ready"
    stage.router.post(f"{first}/remove")
    info = stage.until(waiting, lambda info: info["state"] == "FINISHED")
    assert (info["exit_code"], info["reason"]) == (4, "exited")
    assert stage.router.get(f"{waiting}/file/started").text == "started\n"
    stage.router.post(f"{waiting}/remove")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"limits": {"memory": 10**9}}, "limits.memory"),
        ({"resources": {"cpus": 1}}, "resources.cpus"),
        ({"runner_options": {"slurm": {}}}, "slurm"),
        ({"runner_options": {"guarded": {"x": 1}}}, "x"),
        ({"slurm": {"partition": "p"}}, "slurm"),
        ({"forward_stdout": True}, "forward_stdout"),
    ],
)
def test_what_the_runner_cannot_do_is_refused_by_name(stage: Stage, body: dict[str, Any], named: str) -> None:
    path = stage.router.create(stage.agent.uid)
    answer = stage.router.post(f"{path}/start", {**NO_SERVER, **body})
    assert (answer.status_code, f"Invalid request: {named}" in answer.json()["detail"]) == (400, True)
    assert stage.info(path)["phase"] is None
    assert stage.router.post(f"{path}/remove").status_code == 200
