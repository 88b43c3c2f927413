"""Rules about signals, ends, limits and usage of jobs, part of `prouter.testing.runner_conformance`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import ClassVar

import gevent
import pytest

from prouter.errors import Conflict, NotFound, PRouterError
from prouter.runners import Capabilities, Exit, Limits
from prouter.testing.bench import Bench
from prouter.testing.recorded_reports import until

__all__ = ["Ends"]

TREE = """
import os, sys, time
def beat(name):
    while True:
        with open(name, "a") as file:
            file.write(".")
        time.sleep(0.02)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        beat("orphan")
    os._exit(0)
if os.fork() == 0:
    beat("child")
while not (os.path.exists("orphan") and os.path.exists("child")):
    time.sleep(0.005)
print("grown", flush=True)
if sys.argv[1:] == ["end"]:
    sys.exit(7)
time.sleep(600)
"""
"""A tree: the first process, a child, and an orphan in a session of its own; the latter two append to their files."""
TOLD = """
import os, signal, sys, time
def first(*_):
    deadline = time.monotonic() + 20
    while "tree" in sys.argv and not os.path.exists("child") and time.monotonic() < deadline:
        time.sleep(0.005)
    os._exit(5)
def child(*_):
    open("child", "w").close()
child_up, up = os.pipe()
if os.fork() == 0:
    signal.signal(signal.SIGUSR1, child)
    os.write(up, b"x")
    while True:
        time.sleep(600)
signal.signal(signal.SIGUSR1, first)
os.read(child_up, 1)
print("up", flush=True)
while True:
    time.sleep(600)
"""
"""Two processes that handle SIGUSR1: the first exits with 5, after the child if there is an argument."""
HUNGRY = """
import os, time
memory = b"x" * (50 << 20)
if os.fork():
    while time.process_time() < 0.3:
        pass
print("up", flush=True)
time.sleep(600)
"""
_QUIET = 0.3
"""Seconds for which processes that have ended do nothing."""
_NOBODY = "f" * 32


class Ends:
    """How jobs end, and what they use until then."""

    bench: ClassVar[Bench]
    python: ClassVar[Sequence[str]]
    capabilities: ClassVar[Capabilities]

    def _grown(self, *arguments: str) -> str:
        """Start a tree; return its job once all of it runs."""
        job = self.bench.start(self.bench.spec(*self.python, "-c", TREE, *arguments)).job
        self.bench.file(job, "stdout")
        return job

    def _assert_gone(self, job: str) -> None:
        sizes = self._sizes(job)
        gevent.sleep(_QUIET)
        assert self._sizes(job) == sizes, "a process of the job's tree still runs"

    def _sizes(self, job: str) -> list[int]:
        return [os.stat(self.bench.sandbox(job) / name).st_size for name in ("orphan", "child")]

    def test_kill_ends_the_whole_tree(self) -> None:
        """When `kill` returns no process is left, not even one that left its session and parents: the sandbox is
        deleted next, and a user who ends a job wants its GPU back.
        """
        job = self._grown()
        self.bench.runner.kill(job)
        self._assert_gone(job)
        end = self.bench.end(job)
        assert (end.exit_code, end.signal) == (None, "SIGKILL")

    def test_tree_ends_with_its_first_process(self) -> None:
        """A job is over when its first process is, with the exit code of that; what it left behind is ended."""
        job = self._grown("end")
        assert self.bench.end(job).exit_code == 7
        self._assert_gone(job)

    def test_signal_reaches_the_tree_or_the_first_process(self) -> None:
        """`stop` tells every process of a job to end, `signal` only the one that the user started."""
        for tree in (False, True):
            job = self.bench.start(self.bench.spec(*self.python, "-c", TOLD, *(["tree"] if tree else []))).job
            self.bench.file(job, "stdout")
            self.bench.runner.signal(job, signal.SIGUSR1, tree=tree)
            assert self.bench.end(job).exit_code == 5
            assert (self.bench.sandbox(job) / "child").exists() == tree

    def test_signal_may_be_handled(self) -> None:
        """SIGTERM is a request: a program that handles it saves its work, and chooses its own exit code."""
        code = "trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done"
        job = self.bench.start(self.bench.spec("sh", "-c", code)).job
        self.bench.file(job, "stdout")
        self.bench.runner.signal(job, signal.SIGTERM)
        end = self.bench.end(job)
        assert (end.exit_code, end.signal, end.reason) == (9, None, None)

    def test_signal_that_is_not_handled_is_the_end(self) -> None:
        """The end names the signal, and no other reason: the agent knows who sent it."""
        with self.bench.running("sleep", "600") as job:
            self.bench.runner.signal(job, signal.SIGTERM)
            end = self.bench.end(job)
            assert (end.exit_code, end.signal, end.reason) == (None, "SIGTERM", None)

    def test_stopped_processes_are_killed(self) -> None:
        """A tree that was stopped with SIGSTOP ends at SIGKILL all the same."""
        job = self._grown()
        self.bench.runner.signal(job, signal.SIGSTOP)
        self.bench.runner.kill(job)
        assert self.bench.end(job).signal == "SIGKILL"

    def test_end_is_reported_once_and_after_the_start(self) -> None:
        """Jobs that end at once are the usual case in batches; their end may not overtake their start."""

        def one(_: int) -> None:
            spec = self.bench.spec("true")
            self.bench.start(spec)
            self.bench.end(spec.job)
            assert [one for one in self.bench.reports.order[spec.job] if one != "queued"][-1] == "exited"

        # At once, because a queue may take a second for each job.
        self.bench.together(one, 10)

    def test_end_tells_when_and_what_was_used(self) -> None:
        """Users see how long a job took, and its CPU time and memory."""
        code = "import time\nx = b'x' * (64 << 20)\nwhile time.process_time() < 0.3: pass"
        spec = self.bench.spec(*self.python, "-c", code)
        spawned = self.bench.start(spec)
        end = self.bench.end(spec.job)
        assert end.at >= spawned.started_at
        assert 0.25 <= end.cpu_seconds < 30
        assert end.max_rss >= 64 << 20

    def test_ended_jobs_are_left_alone(self) -> None:
        """`kill` of a job that has ended returns at once, because removals are repeated; the rest is refused."""
        job = self.bench.start(self.bench.spec("true")).job
        self.bench.end(job)
        self.bench.runner.kill(job)
        for call in self._calls_on_what_runs(job):
            with pytest.raises((Conflict, NotFound)):
                call()

    def test_unknown_jobs_are_not_found(self) -> None:
        """What the runner does not know is `NotFound` everywhere, so that the agent can tell it from trouble."""
        runner = self.bench.runner
        calls: list[Callable[[], object]] = [
            *self._calls_on_what_runs(_NOBODY),
            lambda: runner.kill(_NOBODY),
            lambda: runner.forget(_NOBODY),
            lambda: runner.update_record(_NOBODY, {}),
        ]
        for call in calls:
            with pytest.raises(NotFound):
                call()
        assert not runner.exiting(_NOBODY)

    def _calls_on_what_runs(self, job: str) -> list[Callable[[], object]]:
        runner = self.bench.runner

        def tell() -> None:
            runner.signal(job, signal.SIGTERM)

        return [
            tell,
            lambda: runner.usage(job),
            lambda: runner.processes(job),
            lambda: runner.listeners(job),
        ]

    def test_held_jobs_do_not_run(self) -> None:
        """A job exists before it starts: it can be killed without effect, and forgotten, and is held once."""
        spec = self.bench.spec("true")
        self.bench.runner.hold(spec.job, {"a": 1}, spec.remove_on_loss)
        with pytest.raises(Conflict):
            self.bench.runner.hold(spec.job, {"a": 2}, spec.remove_on_loss)
        self.bench.runner.kill(spec.job)
        for call in self._calls_on_what_runs(spec.job):
            with pytest.raises((Conflict, NotFound)):
                call()
        self.bench.runner.forget(spec.job)
        with pytest.raises(NotFound):
            self.bench.runner.forget(spec.job)
        assert spec.job not in self.bench.reports.ends

    def test_forgotten_jobs_are_unknown(self) -> None:
        """The agent forgets what it has removed; a job that runs cannot be forgotten, or nobody would end it."""
        with self.bench.running("sleep", "600") as job, pytest.raises(Conflict):
            self.bench.runner.forget(job)
        with pytest.raises(NotFound):
            self.bench.runner.update_record(job, {})

    def test_sandbox_of_a_forgotten_job_is_the_agents(self) -> None:
        """The runner neither writes into the sandbox nor deletes it once the job is forgotten."""
        with self.bench.running("sleep", "600") as job:
            pass
        assert self.bench.sandbox(job).is_dir()

    def test_usage_counts_the_tree(self) -> None:
        """CPU time, memory and number of all processes of the job, while it runs."""
        with self.bench.running(*self.python, "-c", HUNGRY) as job:
            self.bench.file(job, "stdout")
            used = until(lambda: self._used(job), self.bench.patience, "CPU time, memory and processes are known")
            assert 50 << 20 <= used < 4 << 30
            assert len(self.bench.runner.processes(job)) >= 2

    def _used(self, job: str) -> int:
        used = self.bench.runner.usage(job)
        return used.rss_bytes if used.cpu_seconds >= 0.2 and used.processes >= 2 else 0

    def test_first_process_is_listed_first(self) -> None:
        """`processes` has the parents first: the first process leads."""
        spec = self.bench.spec("sh", "-c", "sleep 600 & wait")
        spawned = self.bench.start(spec)
        until(lambda: len(self.bench.runner.processes(spec.job)) >= 2, self.bench.patience, "the child is listed")
        assert self.bench.runner.processes(spec.job)[0] == spawned.pid
        self.bench.runner.kill(spec.job)
        self.bench.end(spec.job)

    # -- limits -----------------------------------------------------------------------------------------------------

    def _limited(self, name: str, value: int, *argv: str) -> Exit:
        if name not in self.capabilities.limits:
            pytest.skip(f"this runner does not promise the limit {name}")
        return self.bench.run(*argv, limits=Limits()._replace(**{name: value}))

    def test_memory_is_limited(self) -> None:
        """A job over its memory limit ends, and the reason says so: users cannot guess it from SIGKILL."""
        code = "x = [b'x' * (1 << 20) for _ in range(2000)]\nimport time; time.sleep(600)"
        assert self._limited("memory", 200 << 20, *self.python, "-c", code).reason == "memory"

    def test_cpu_time_is_limited(self) -> None:
        """The same for CPU time of the whole tree."""
        code = "import os\nos.fork()\nwhile True: pass"
        assert self._limited("cpu_seconds", 1, *self.python, "-c", code).reason == "cpu"

    def test_processes_are_limited(self) -> None:
        """The same for the number of processes, before they fill the machine."""
        code = "import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(600)\ntime.sleep(600)"
        assert self._limited("processes", 20, *self.python, "-c", code).reason == "processes"

    def test_open_files_are_limited(self) -> None:
        """Each process gets the limit itself (RLIMIT_NOFILE), which programs can see and handle."""
        end = self._limited("open_files", 64, "sh", "-c", 'test "$(ulimit -n)" = 64')
        assert end.exit_code == 0

    def test_unknown_resources_and_options_are_refused(self) -> None:
        """A typing error in a request is told before anything starts, and by its name."""
        for resources, options in (({"no_such_thing": 1.0}, {}), ({}, {"no_such_option": 1})):
            with pytest.raises(PRouterError, match="no_such"):
                self.bench.runner.check(Limits(), resources, options)
        self.bench.runner.check(Limits(), {}, {})
