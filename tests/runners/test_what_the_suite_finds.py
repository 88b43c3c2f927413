"""The conformance suite finds runners that break its rules, and says what is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.runners import Address, Kept, Limits, Queued, Reports, RunnerType, Setup, Spawned, SpawnSpec
from prouter.runners.local.servers import connected
from prouter.testing.runner_conformance import RunnerConformance
from tests.runners.guarded.runner import GuardedOptions, GuardedRunner

ROOT = Path(__file__).parents[2]


class LosesExitCodes(GuardedRunner):
    def open(self, reports: Reports) -> list[Kept]:
        exited = reports.exited
        reports.exited = lambda end: exited(replace(end, exit_code=0))  # type: ignore[method-assign]
        return super().open(reports)


class IgnoresSignals(GuardedRunner):
    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        self.processes(job)


class ForgetsJobs(GuardedRunner):
    def open(self, reports: Reports) -> list[Kept]:
        super().open(reports)
        return []


class TellsStartsTwice(GuardedRunner):
    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        placed = super().spawn(spec, wait)
        if isinstance(placed, Spawned):
            self._reports.running(placed)
        return placed


class BlocksTheThread(GuardedRunner):
    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        time.sleep(0.4)
        return super().spawn(spec, wait)


class BlocksForEver(GuardedRunner):
    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        time.sleep(3600)
        return super().spawn(spec, wait)


class BlocksInCheck(GuardedRunner):
    def check(self, limits: Limits, resources: Mapping[str, float], options: Mapping[str, Any]) -> None:
        gevent.sleep(0)
        super().check(limits, resources, options)


class BlocksInTheEventLoop(GuardedRunner):
    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        gevent.sleep(0)
        return None


class OpensEveryPort(GuardedRunner):
    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        return connected(address, timeout)


class TrustsAssignedPorts(GuardedRunner):
    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        return connected(address, timeout) if assigned else super().connect(job, address, timeout)


class TrustsPaths(GuardedRunner):
    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        return connected(address, timeout) if address.path else super().connect(job, address, timeout)


class TrustsPortNumbers(GuardedRunner):
    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        if any(one.port == address.port for one in self.listeners(job).own):
            return connected(address, timeout)
        return super().connect(job, address, timeout)


class KeepsJobs(GuardedRunner):
    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, keep_for=60.0))


BROKEN: dict[type[GuardedRunner], tuple[str, str]] = {
    LosesExitCodes: ("exit_codes_are_exact", "assert (0, None, None) == (3, None, None)"),
    IgnoresSignals: ("signal_that_is_not_handled", "not within 2 s: the end of"),
    ForgetsJobs: ("test_jobs_outlive_the_agent", "which outlived the earlier agent; it returned []"),
    TellsStartsTwice: ("exit_codes_are_exact", "before `spawn` had returned; report it afterwards"),
    BlocksTheThread: ("blocks_its_own_greenlet", "in each of 5 starts the event loop stood still for "),
    BlocksForEver: ("exit_codes_are_exact", "blocks the thread, not only its greenlet"),
    BlocksInCheck: ("refused", "check blocked its greenlet"),
    BlocksInTheEventLoop: ("at_once", "connect_at_once blocked its greenlet"),
    OpensEveryPort: ("port_of_another", "DID NOT RAISE"),
    TrustsAssignedPorts: ("assigned_port_of_another_job", "DID NOT RAISE"),
    TrustsPaths: ("unix_socket_of_another_job", "DID NOT RAISE"),
    TrustsPortNumbers: ("same_port_of_another_address", "DID NOT RAISE"),
    KeepsJobs: ("agent_that_keeps_none", "not within 2 s: the sandbox is removed"),
}


def of(name: str) -> type[RunnerConformance]:
    """The suite of one of the broken runners, which pytest collects only where a test asks for it."""
    kind = next(one for one in BROKEN if one.__name__ == name)
    options: dict[str, Any] = {"runner_type": RunnerType(kind, GuardedOptions), "patience": 2.0}
    return type("TestBroken", (RunnerConformance,), {**options, "__module__": __name__})


if "BROKEN_RUNNER" in os.environ:
    TestBroken = of(os.environ["BROKEN_RUNNER"])


@pytest.mark.skipif("BROKEN_RUNNER" in os.environ, reason="this is the broken runner's own run")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_runner_is_found(kind: type[GuardedRunner]) -> None:
    rule, said = BROKEN[kind]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            f"TestBroken and {rule}",
        ],
        cwd=ROOT,
        env={**os.environ, "BROKEN_RUNNER": kind.__name__, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stdout
    assert said in run.stdout
