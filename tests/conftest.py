"""Fixtures that many tests share: a real router, a real agent, and the means to start more."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.job_files import Sandbox
from tests.support.processes import Agent, Process, Router, start_agent, start_router

JOBS = Path(__file__).parent / "jobs"

# The same cases on every machine and in every run, however slow; `--hypothesis-profile random` tries others.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", settings.get_profile("random"), derandomize=True, database=None)
settings.load_profile("same")


def pytest_configure() -> None:
    """Have programs under test not inherit ignored signals, as they are for what a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets; removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="prt-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def own_directories(short_dir: Path) -> Iterator[None]:
    """No process of a test leaves anything in the user's own directories for state and sockets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(short_dir / "state"))
        patch.setenv("XDG_RUNTIME_DIR", str(short_dir))
        yield


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """Like `short_dir`, one per test."""
    path = Path(tempfile.mkdtemp(prefix="prt-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def launch(work_dir: Path) -> Iterator[Callable[..., Any]]:
    """``launch(start_router, **sets)`` or ``launch(start_agent, router, **sets)``: processes ended after the test."""
    started: list[Process] = []

    def start(what: Callable[..., Any], *args: Any, **sets: Any) -> Any:
        process = what(work_dir / f"{what.__name__}{len(started)}", *args, **sets)
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.stop()


@pytest.fixture(scope="session")
def router(short_dir: Path) -> Iterator[Router]:
    """One router for all tests of a session that leave it as they found it."""
    process = start_router(short_dir / "router")
    yield process
    process.stop()


@pytest.fixture(scope="session")
def agent(short_dir: Path, router: Router) -> Iterator[Agent]:
    """One agent of `router`, on the same terms."""
    process = start_agent(short_dir / "agent", router)
    yield process
    process.stop()


@pytest.fixture
def sandbox(router: Router, agent: Agent) -> Iterator[Sandbox]:
    """The sandbox of a new job, removed afterwards."""
    sandbox = Sandbox(router, agent)
    yield sandbox
    router.post(sandbox.path + "/remove")


@pytest.fixture(scope="session")
def jobs() -> Path:
    """The directory of job server scripts."""
    return JOBS
