"""What a conformance suite works with: a directory, runners one after another on one state, jobs, agents to kill."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, cast

import gevent

from prouter.errors import Conflict, PRouterError
from prouter.runners import Exit, Kept, Queued, Runner, Setup, Spawned, SpawnSpec
from prouter.testing.checked_runner import CheckedRunner
from prouter.testing.recorded_reports import RecordedReports, until

__all__ = ["Bench", "Suite"]

_RETRY = 0.02
"""Seconds between attempts to open a runner whose last agent was killed."""


class Suite(Protocol):
    """What a bench asks of its test class (`prouter.testing.runner_conformance.RunnerConformance`)."""

    patience: float
    directory: str | None
    environment: dict[str, str]

    def make_runner(self, setup: Setup) -> Runner:
        """Make a runner."""

    def setup(self, directory: Path, keep_for: float) -> Setup:
        """Give the runner's setup."""


class _Found(dict[str, Kept]):
    """The jobs that `open` has returned, by uid."""

    def __missing__(self, job: str) -> Kept:
        raise AssertionError(f"open did not return job {job}, which outlived the earlier agent; it returned {[*self]}")


class Bench:
    """Runners, jobs and agents of one suite or test; `close` leaves nothing behind.

    Args:
        keep_for: seconds for which jobs outlive the agent.

    Attributes:
        reports: of the runner that is open.
        faults: what was wrong with reports so far, in sentences.
    """

    def __init__(self, suite: Suite, keep_for: float) -> None:
        self._suite = suite
        self._keep_for = keep_for
        self.patience = suite.patience
        self.directory = Path(tempfile.mkdtemp(prefix="prt-", dir=suite.directory))
        (self.directory / "jobs").mkdir()
        self.faults: list[str] = []
        self.reports = RecordedReports(self.faults.append)
        self._runner: Runner | None = None
        self._killed = False
        self._agents: list[subprocess.Popen[str]] = []

    # -- the agent's side -------------------------------------------------------------------------------------------

    def open(self) -> dict[str, Kept]:
        """Open a new runner on the state of the earlier ones; return the jobs that it found, by uid."""
        runner = self.another()
        self.reports = RecordedReports(self.faults.append)
        kept = self._opened(runner)
        self._runner = runner
        return _Found({job.job: job for job in kept})

    def _opened(self, runner: Runner) -> list[Kept]:
        """Open a runner. A child that a killed agent was just making may hold its lock for some milliseconds more."""
        deadline = time.monotonic() + (self.patience if self._killed else 0.0)
        self._killed = False
        while True:
            try:
                return runner.open(self.reports)
            except Conflict:
                if time.monotonic() >= deadline:
                    raise
                gevent.sleep(_RETRY)

    def another(self) -> Runner:
        """Make a runner on the same state, and do not open it."""
        made = self._suite.make_runner(self._suite.setup(self.directory, self._keep_for))
        return CheckedRunner(made, self.patience)

    def assert_no_faults(self) -> None:
        """Fail if a report since the last call was wrong."""
        faults, self.faults[:] = list(self.faults), []
        assert not faults, "\n".join(dict.fromkeys(faults))

    @property
    def runner(self) -> Runner:
        """The runner that is open."""
        assert self._runner is not None, "a runner is open"
        return self._runner

    def shut(self, *, end_jobs: bool) -> None:
        """Close the runner that is open."""
        runner, self._runner = self.runner, None
        runner.close(end_jobs=end_jobs)

    def agent(self, *specs: SpawnSpec, **told: Any) -> subprocess.Popen[str]:
        """Start the agent's side in a process of its own, which starts these jobs; return it at once.

        Args:
            told: ``held`` and ``records``, by job.
        """
        kind = cast(type, self._suite)
        body = {
            "file": inspect.getfile(kind),
            "module": kind.__module__,
            "class": kind.__qualname__,
            "directory": str(self.directory),
            "keep_for": self._keep_for,
            "wait": self.patience,
            "held": {},
            "records": {},
            "sandboxes": {path.name: str(path) for path in (self.directory / "jobs").iterdir()},
            **told,
            "jobs": [asdict(spec) for spec in specs],
        }
        agent = subprocess.Popen(
            [sys.executable, "-m", "prouter.testing.agent_side", json.dumps(body)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._agents.append(agent)
        return agent

    def heard(self, agent: subprocess.Popen[str], word: str) -> list[dict[str, Any]]:
        """Read what an agent prints up to the first line with this key."""
        assert agent.stdout is not None, "it prints to a pipe"
        lines: list[dict[str, Any]] = []
        while not lines or word not in lines[-1]:
            line = agent.stdout.readline()
            assert line, f"the agent's process ended before it told {word!r}: it said {lines}"
            lines.append(json.loads(line))
            assert "fault" not in lines[-1], lines[-1]["fault"]
        return lines

    def kill(self, agent: subprocess.Popen[str]) -> None:
        """Kill an agent with SIGKILL, and wait for its end."""
        agent.kill()
        agent.wait()
        self._killed = True
        assert agent.stdout is not None, "it prints to a pipe"
        agent.stdout.close()

    # -- jobs -------------------------------------------------------------------------------------------------------

    def spec(self, *argv: str, **options: Any) -> SpawnSpec:
        """Make the spec of a job with a sandbox of its own, whose output goes to ``stdout`` and ``stderr`` there."""
        job = token_hex(16)
        sandbox = self.directory / "jobs" / job
        sandbox.mkdir()
        options = {
            "env": dict(self._suite.environment),
            "cwd": str(sandbox),
            "stdout": str(sandbox / "stdout"),
            "stderr": str(sandbox / "stderr"),
            "remove_on_loss": str(sandbox),
            **options,
        }
        return SpawnSpec(job, list(argv), **options)

    def start(self, spec: SpawnSpec) -> Spawned:
        """Start a job, and wait for its turn if it is queued."""
        placed = self.runner.spawn(spec, self.patience)
        if isinstance(placed, Queued):
            return self.turn(spec.job)
        return placed

    def run(self, *argv: str, **options: Any) -> Exit:
        """Start a job; return how it ended."""
        return self.end(self.start(self.spec(*argv, **options)).job)

    def turn(self, job: str) -> Spawned:
        """Wait until a queued job has started."""
        until(lambda: job in self.reports.starts or job in self.reports.ends, self.patience, f"{job} starts")
        assert job in self.reports.starts, f"the queued job {job} did not start: {self.reports.ends[job]}"
        return self.reports.starts[job]

    def end(self, job: str) -> Exit:
        """Wait for the report of a job's end; there must be one only."""
        until(lambda: self.faults or job in self.reports.ends, self.patience, f"the end of {job} is reported")
        self.assert_no_faults()
        return self.reports.ends[job]

    def sandbox(self, job: str) -> Path:
        """The sandbox of a job."""
        return self.directory / "jobs" / job

    def output(self, job: str, name: str = "stdout") -> bytes:
        """What a job, which has ended, wrote to a file in its sandbox."""
        return (self.sandbox(job) / name).read_bytes()

    def file(self, job: str, name: str) -> str:
        """Wait for a file in a job's sandbox whose text ends with a newline; return the text without it."""
        path = self.sandbox(job) / name

        def complete() -> str:
            with contextlib.suppress(FileNotFoundError):
                text = path.read_text()
                return text if text.endswith("\n") else ""
            return ""

        return until(complete, self.patience, f"the job writes {name}").removesuffix("\n")

    @contextlib.contextmanager
    def running(self, *argv: str, **options: Any) -> Iterator[str]:
        """A job that is killed and forgotten at the end of the block."""
        job = self.start(self.spec(*argv, **options)).job
        try:
            yield job
        finally:
            self.runner.kill(job)
            self.end(job)
            self.runner.forget(job)

    def together(self, call: Callable[[int], Any], times: int) -> list[Any]:
        """Call a function many times at once, with numbers from 0; return what it returned."""
        greenlets = [gevent.spawn(call, number) for number in range(times)]
        gevent.joinall(greenlets, raise_error=True)
        return [one.value for one in greenlets]

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End every job, runner and agent, and remove the directory."""
        for agent in self._agents:
            if agent.poll() is None:
                self.kill(agent)
        try:
            if self._runner is None:
                with contextlib.suppress(PRouterError):
                    self.open()
            if self._runner is not None:
                self.shut(end_jobs=True)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
