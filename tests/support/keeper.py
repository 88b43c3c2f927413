"""Helpers for tests of the keeper: a runner in the test's process, agents to kill, jobs that escape their parents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import gevent

from prouter.processes import halting, process_tree
from prouter.runners import Exit, Kept, Reports, Setup, Spawned, SpawnSpec
from prouter.runners.local.runner import LocalRunner
from tests.support.runners import ExitReports

T = TypeVar("T")

ESCAPE = """
import os, sys
def note(name):
    with open(name + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".new", name)
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    note("escaped")
    os.execve("/bin/sleep", ["sleep", "1000"], {})
os.waitpid(child, 0)
if sys.argv[1:] == ["end"]:
    while not os.path.exists("escaped"):
        pass
    sys.exit(7)
os.execv("/bin/sleep", ["sleep", "1000"])
"""
"""A job whose grandchild left its session, its parents and its environment; its pid is in the file ``escaped``."""


def until(condition: Callable[[], T], seconds: float = 8.0) -> T:
    """Wait for a condition and return its value; greenlets run meanwhile."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        gevent.sleep(0.002)
    return value


def alive(pid: int) -> bool:
    """Whether a process with this pid runs."""
    process = process_tree.read_process(pid)
    return process is not None and process.alive


def number(path: Path) -> int:
    """Wait for a file with a pid; return the pid."""
    until(path.exists)
    return int(path.read_text())


class BenchRunner(LocalRunner):
    """A local runner whose reports a bench keeps."""

    def __init__(self, setup: Setup, reports: Reports) -> None:
        super().__init__(setup)
        self.reports = reports

    def open(self, reports: Reports | None = None) -> list[Kept]:
        return super().open(reports or self.reports)

    def spawn(self, spec: SpawnSpec, wait: float = 0.0) -> Spawned:
        return super().spawn(spec, wait)


class Bench:
    """State directory, sandboxes, runners and stand-in agents of one test; `close` leaves no process behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.exits: dict[str, list[Exit]] = {}
        self._runners: list[BenchRunner] = []
        self._agents: list[subprocess.Popen[str]] = []
        self._keepers: set[int] = set()
        self._jobs: set[str] = set()

    def runner(self, *, keep_for: float = 0.0, cgroup: str = "off") -> BenchRunner:
        """Make a runner, not open yet, that reports exits to `exits`."""
        reports = ExitReports(lambda end: self.exits.setdefault(end.job, []).append(end))
        runner = BenchRunner(Setup(self.state_dir, self.directory, keep_for, cgroup), reports)
        self._runners.append(runner)
        return runner

    def spec(self, *argv: str, **options: Any) -> SpawnSpec:
        """Make the spec of a job with its own sandbox; its output goes to files there unless `options` differ."""
        job = token_hex(16)
        self._jobs.add(job)
        sandbox = self.directory / job
        sandbox.mkdir()
        options = {
            "env": dict(os.environ),
            "cwd": str(sandbox),
            "stdout": str(sandbox / "stdout"),
            "stderr": str(sandbox / "stderr"),
            "remove_on_loss": str(sandbox),
            **options,
        }
        return SpawnSpec(job, list(argv), **options)

    def escape(self, *arguments: str, **options: Any) -> SpawnSpec:
        """Make the spec of a job that runs `ESCAPE`."""
        return self.spec(sys.executable, "-I", "-S", "-c", ESCAPE, *arguments, **options)

    def sandbox(self, job: str) -> Path:
        """Return the sandbox of a job that `spec` made."""
        return self.directory / job

    def exit(self, spawned: Spawned) -> Exit:
        """Wait for a job's exit, which must be reported once."""
        until(lambda: spawned.job in self.exits)
        exits = self.exits[spawned.job]
        assert len(exits) == 1
        return exits[0]

    def agent(
        self, *specs: SpawnSpec, keep_for: float, held: dict[str, str] | None = None, cgroup: str = "off"
    ) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Start a stand-in agent with these jobs; return its process and its first line."""
        told = {
            "state_dir": str(self.state_dir),
            "keep_for": keep_for,
            "cgroup": cgroup,
            "held": held or {},
            "jobs": [{name: value for name, value in asdict(spec).items() if name != "limits"} for spec in specs],
        }
        script = Path(__file__).with_name("agent_stand_in.py")
        root = Path(process_tree.__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(told)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        self._agents.append(process)
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        self._keepers.add(line["keeper"])
        return process, line

    def close(self) -> None:
        """End every process that is left."""
        for agent in self._agents:
            agent.kill()
            agent.wait()
            assert agent.stdout is not None
            agent.stdout.close()
        for runner in self._runners:
            if runner.keeper_pid is not None:
                self._keepers.add(runner.keeper_pid)
            runner.close(end_jobs=True)
        for keeper in self._keepers:
            process = process_tree.read_process(keeper)
            if process is not None and process.session == keeper:
                process_tree.send(process, signal.SIGKILL)
        halting.end_marked(self._jobs, patience=5)
