"""A process that has tokens and requests in its memory leaves no core when it crashes; jobs still may."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import processes_with, start_agent, start_router, wait_until


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Whatever the tests start may dump core, as far as this process may permit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("no process of this user may dump core")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def core_limit(pid: int) -> str:
    """The soft limit of a process, as /proc shows it."""
    found = re.search(r"Max core file size +(\S+)", Path(f"/proc/{pid}/limits").read_text())
    assert found is not None
    return found[1]


@pytest.mark.usefixtures("unlimited")
def test_only_jobs_dump_core(launch: Callable[..., Any]) -> None:
    router = launch(start_router)
    agent = launch(start_agent, router)
    parents = {router.pid, agent.pid, router.child("broker"), router.child("gunicorn")}
    workers = [int(pid) for pid in re.findall(r"event=worker_up worker=\S+ pid=(\d+)", router.log.read_text())]
    assert len(workers) >= 2
    for pid in parents | set(workers):
        assert core_limit(pid) in ("0", "1"), Path(f"/proc/{pid}/cmdline").read_bytes()
    job = router.create(agent.uid)
    router.start(job, [sys.executable, "-c", "import time; time.sleep(600)", "core-of-a-job"], port_expected_count=0)
    (pid,) = wait_until(lambda: processes_with("core-of-a-job"))
    assert core_limit(pid) not in ("0", "1")
