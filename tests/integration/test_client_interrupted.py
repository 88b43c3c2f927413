"""The Python client where a program does not wait for the end: Ctrl-C, cancelled tasks, forks."""

from __future__ import annotations

import _thread
import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from prouter.client import AsyncRouter, Router
from prouter.client.async_driver import _in_thread
from tests.support import processes
from tests.support.cutting_relay import CuttingRelay
from tests.support.processes import Agent, wait_until

FORKING = """
import os, sys
from prouter.client import Router
router = Router(sys.argv[1])
with router.run([sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"], expose="assign") as job:
    job.write("who", "parent")
    assert job.http.get("who").text == "parent"
    child = os.fork()
    for number in range(40):
        name = "child" if child == 0 else "parent"
        job.write(f"{name}{number}", f"{name}{number}")
        assert job.read(f"{name}{number}").decode() == job.http.get(f"{name}{number}").text == f"{name}{number}"
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert job.info().state == "RUNNING"
"""


@pytest.fixture
def relay(router: processes.Router, agent: Agent) -> Iterator[CuttingRelay]:
    with CuttingRelay(router.url) as relay:
        yield relay


def left(router: processes.Router, name: str) -> int:
    """The number of jobs of this name that are still there."""
    return len(router.get(f"/jobs?name={name}").json()["jobs"])


def test_ctrl_c_leaves_no_job_whose_creation_was_not_answered(router: processes.Router, relay: CuttingRelay) -> None:
    def plan(number: int) -> int | None:
        if number == 1:
            _thread.interrupt_main()
        return 0 if number == 0 else None

    relay.plan = plan
    with Router(relay.url) as client, pytest.raises(KeyboardInterrupt):
        client.run(["sleep", "60"], name="interrupted")
    assert left(router, "interrupted") == 0
    assert router.get("/jobs?name=interrupted&state=CLOSED").json()["jobs"]


def test_a_cancelled_task_leaves_no_job_whose_creation_was_not_answered(
    router: processes.Router, relay: CuttingRelay
) -> None:
    async def run(client: AsyncRouter) -> None:
        await client.run(["sleep", "60"], name="cancelled")

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()

        def plan(number: int) -> int | None:
            if number == 1:
                loop.call_soon_threadsafe(task.cancel)
            return 0 if number == 0 else None

        relay.plan = plan
        async with AsyncRouter(relay.url) as client:
            task = asyncio.create_task(run(client))
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert left(router, "cancelled") == 0


def test_a_cancellation_waits_for_the_thread_that_works_on_files() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        go_on.wait(20)
        ended.set()

    async def cancelled() -> None:
        task = asyncio.create_task(_in_thread(write))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancelled())


def test_after_a_fork_both_processes_have_connections_of_their_own(router: processes.Router, agent: Agent) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, router.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: left(router, Path(sys.executable).name) == 0)


def test_a_scope_of_anyio_that_is_cancelled_leaves_no_job(router: processes.Router, agent: Agent) -> None:
    async def cancelled() -> None:
        async with AsyncRouter(router.url) as client:
            for moment in ("making", "following"):
                with anyio.CancelScope() as scope:
                    if moment == "making":
                        asyncio.get_running_loop().call_later(0.01, scope.cancel)
                    async with client.run(["sh", "-c", "echo x; sleep 60"], name="scoped") as job:
                        async for _ in job.logs(follow=True):
                            scope.cancel()
                assert scope.cancelled_caught
                assert left(router, "scoped") == 0

    anyio.run(cancelled)
