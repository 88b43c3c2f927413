"""Rules about starts of jobs, part of `prouter.testing.runner_conformance`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import gevent
import pytest

from prouter.errors import Conflict, PRouterError, StartFailed
from prouter.runners.interface import Queued
from prouter.testing.bench import Bench

__all__ = ["Starts"]

ODD_ARGUMENTS = [
    "", " ", "two words", "'single'", '"double"', "a\nb\n", "\t", "$HOME `id` $(id) !x", "*", "~", "-n", "--", "\\",
    "\\n",
    "a;b&c|d>e<f#g", "%s %d", "{port}", "é ü 漢字 😀", "x" * 5000,
]  # fmt: skip
SHOW_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"
SHOW_SIGNALS = """
import signal
ignored = [n for n in range(1, 65) if n not in (9, 19, 32, 33) and signal.getsignal(n) is signal.SIG_IGN]
print(ignored, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""
_TRIES = 5
_BLOCKED = 0.2
"""Seconds for which the event loop may stand still in one of these tries."""


class _Pulse:
    """How long the event loop stood still at most, from the block's beginning to its end."""

    def __init__(self) -> None:
        self.longest = 0.0

    def __enter__(self) -> _Pulse:
        self._last = time.monotonic()
        self._beating = gevent.spawn(self._beat)
        gevent.sleep(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._beating.kill()
        self._count()

    def _beat(self) -> None:
        while True:
            gevent.sleep(0.005)
            self._count()

    def _count(self) -> None:
        now = time.monotonic()
        self.longest, self._last = max(self.longest, now - self._last), now


class Starts:
    """How jobs start, and what they find."""

    bench: ClassVar[Bench]
    python: ClassVar[Sequence[str]]
    variables: ClassVar[tuple[str, ...]]

    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_exit_codes_are_exact(self, code: int) -> None:
        """The agent shows the exit code to users, and programs decide by it: no shell or queue may change it."""
        end = self.bench.run("sh", "-c", f"exit {code}")
        assert (end.exit_code, end.signal, end.reason) == (code, None, None)

    @pytest.mark.parametrize("name", ["USR1", "KILL", "SEGV"])
    def test_signals_are_exact(self, name: str) -> None:
        """A job that died of a signal has no exit code: 128 + n would look like one that the program chose."""
        end = self.bench.run("sh", "-c", f"kill -{name} $$")
        assert (end.exit_code, end.signal, end.reason) == (None, f"SIG{name}", None)

    def test_arguments_arrive_as_they_are(self) -> None:
        """A runner that passes commands through a shell or a script has to quote: empty ones, newlines, any UTF-8."""
        job = self.bench.start(self.bench.spec(*self.python, "-c", SHOW_ARGUMENTS, *ODD_ARGUMENTS)).job
        assert self.bench.end(job).exit_code == 0
        assert json.loads(self.bench.output(job)) == ODD_ARGUMENTS

    def test_many_arguments_arrive(self) -> None:
        """Ten thousand arguments fit execve(2), so they have to fit everything on the way to it."""
        many = [f"argument {number}" for number in range(10_000)]
        job = self.bench.start(self.bench.spec(*self.python, "-c", SHOW_ARGUMENTS, *many)).job
        assert self.bench.end(job).exit_code == 0
        assert json.loads(self.bench.output(job)) == many

    def test_environment_is_the_given_one_and_the_mark(self) -> None:
        """The environment is whole as given: nothing of the agent's own leaks, which may hold its secrets.

        ``PROUTER_JOB_ID`` is added, by which a job and its keeper know the job.
        """
        os.environ["CONFORMANCE_SECRET"] = "of the agent"
        odd = {"EMPTY": "", "LINES": "a\nb\n", "QUOTES": "'\"$x`", "UTF": "é 漢字", "a.b": "dot", "LAST": "="}
        spec = self.bench.spec("env", "-0")
        spec = self.bench.spec("env", "-0", env={**spec.env, **odd})
        try:
            job = self.bench.start(spec).job
            assert self.bench.end(job).exit_code == 0
        finally:
            del os.environ["CONFORMANCE_SECRET"]
        seen = self._environment(job)
        assert seen == {**spec.env, "PROUTER_JOB_ID": job}

    def _environment(self, job: str) -> dict[str, str]:
        """What ``env -0`` has printed, without what the place adds."""
        seen = dict(line.split("=", 1) for line in self.bench.output(job).decode().split("\0") if line)
        return {name: value for name, value in seen.items() if not name.startswith(self.variables)}

    def test_large_environments_arrive(self) -> None:
        """Users put configurations into variables: one of 100 kB, and a megabyte together."""
        large = {"ONE": "x" * 100_000, **{f"PART_{number}": str(number) * 1000 for number in range(400)}}
        spec = self.bench.spec("env", "-0")
        job = self.bench.start(self.bench.spec("env", "-0", env={**spec.env, **large})).job
        assert self.bench.end(job).exit_code == 0
        seen = self._environment(job)
        assert seen == {**spec.env, **large, "PROUTER_JOB_ID": job}

    def test_command_is_found_in_the_jobs_own_path(self) -> None:
        """The command is looked up in the PATH of the job's environment, as a shell there would."""
        spec = self.bench.spec("greet")
        folder = self.bench.sandbox(spec.job) / "bin"
        folder.mkdir()
        (folder / "greet").write_text("#!/bin/sh\necho hello\n")
        (folder / "greet").chmod(0o755)
        env = {**spec.env, "PATH": f"{folder}:{spec.env['PATH']}"}
        job = self.bench.start(self.bench.spec("greet", env=env)).job
        assert self.bench.end(job).exit_code == 0
        assert self.bench.output(job) == b"hello\n"

    def test_job_starts_in_its_directory(self) -> None:
        """The working directory is the one of the request, also with blanks and UTF-8 in its name."""
        spec = self.bench.spec("true")
        folder = self.bench.sandbox(spec.job) / "a b é"
        folder.mkdir()
        job = self.bench.start(self.bench.spec("sh", "-c", "pwd -P", cwd=str(folder))).job
        self.bench.end(job)
        assert self.bench.output(job).decode().rstrip("\n") == os.path.realpath(folder)

    def test_output_goes_to_its_files(self) -> None:
        """stdout and stderr are files apart, appended to, complete once the end is reported, and nobody else's."""
        spec = self.bench.spec("sh", "-c", "echo out; echo err >&2; (sleep 0.1; echo late)& wait")
        (self.bench.sandbox(spec.job) / "stdout").write_text("before\n")
        self.bench.end(self.bench.start(spec).job)
        assert self.bench.output(spec.job, "stdout") == b"before\nout\nlate\n"
        assert self.bench.output(spec.job, "stderr") == b"err\n"
        assert (self.bench.sandbox(spec.job) / "stderr").stat().st_mode & 0o077 == 0

    def test_large_output_is_complete(self) -> None:
        """The last bytes of a job that writes a lot and exits at once are the ones that matter."""
        job = self.bench.start(self.bench.spec(*self.python, "-c", "print('x' * 3_000_000 + 'end')")).job
        assert self.bench.end(job).exit_code == 0
        assert len(self.bench.output(job)) == 3_000_004
        assert self.bench.output(job).endswith(b"xend\n")

    def test_job_reads_nothing(self) -> None:
        """stdin is at its end: a program that asks would wait for ever, with nobody to answer."""
        job = self.bench.start(self.bench.spec("sh", "-c", "cat; echo over")).job
        self.bench.end(job)
        assert self.bench.output(job) == b"over\n"

    def test_job_has_default_signals(self) -> None:
        """Nothing is ignored or blocked, or SIGTERM, Ctrl-C and closed pipes would not end programs.

        Python itself ignores SIGPIPE and SIGXFSZ.
        """
        job = self.bench.start(self.bench.spec(*self.python, "-c", SHOW_SIGNALS)).job
        self.bench.end(job)
        assert self.bench.output(job) == b"[13, 25] []\n"

    @pytest.mark.parametrize("argv", [["/no/such/program"], ["no-such-program"], ["/etc/passwd"], ["/"]])
    def test_command_that_cannot_run_is_a_failed_start(self, argv: list[str]) -> None:
        """Users have to tell a wrong command from a program that failed; an exit code 127 would be neither.

        `spawn` raises `StartFailed`, or, if the command's turn comes later, the reported reason is ``start_failed``.
        """
        self._assert_start_fails(argv)

    def test_missing_directory_is_a_failed_start(self) -> None:
        """The same for the directory in which the job is to start."""
        self._assert_start_fails(["true"], cwd="/no/such/directory")

    def _assert_start_fails(self, argv: list[str], **options: str) -> None:
        spec = self.bench.spec(*argv, **options)
        try:
            placed = self.bench.runner.spawn(spec, self.bench.patience)
        except StartFailed as error:
            assert error.detail, "it says why"
            assert spec.job not in self.bench.reports.ends, "a start that raises has no end"
            return
        assert isinstance(placed, Queued), "nothing runs"
        assert self.bench.end(spec.job).reason == "start_failed"

    def test_held_job_whose_start_failed_may_start_again(self) -> None:
        """After `StartFailed` nothing has started, so that another start of the same job is the first one."""
        spec = self.bench.spec("/no/such/program")
        self.bench.runner.hold(spec.job, {"held": 1}, spec.remove_on_loss)
        try:
            self.bench.runner.spawn(spec, self.bench.patience)
        except StartFailed:
            self.bench.start(replace(spec, argv=["true"]))
            assert self.bench.end(spec.job).exit_code == 0
        else:
            pytest.skip("this runner learns only later that the command cannot run")

    def test_job_starts_once(self) -> None:
        """A start that is repeated because its answer was lost must not run the program again."""
        spec = self.bench.spec("sh", "-c", "echo started >> starts; sleep 600")
        self.bench.start(spec)
        self.bench.file(spec.job, "starts")
        with pytest.raises(Conflict):
            self.bench.runner.spawn(spec, 0)
        self.bench.runner.kill(spec.job)
        self.bench.end(spec.job)
        with pytest.raises(PRouterError):
            self.bench.runner.spawn(spec, 0)
        assert (self.bench.sandbox(spec.job) / "starts").read_text() == "started\n"

    def test_start_tells_the_first_process(self) -> None:
        """The record shows users the pid, and since when the job runs."""
        spec = self.bench.spec("sh", "-c", "echo $$ > pid; date +%s > began; sleep 600")
        spawned = self.bench.start(spec)
        assert spawned.job == spec.job
        assert str(spawned.pid) == self.bench.file(spec.job, "pid")
        assert abs(spawned.started_at - int(self.bench.file(spec.job, "began"))) < 60
        self.bench.runner.kill(spec.job)
        self.bench.end(spec.job)

    def test_a_start_blocks_its_own_greenlet_only(self) -> None:
        """The agent goes on during a start: a call that blocks the thread stops all jobs' streams.

        Blocking calls belong in gevent's thread pool (`gevent.get_hub().threadpool.apply`). The best of several starts
        counts, because a busy machine may stop the process, too.
        """
        gaps = []
        for _ in range(_TRIES):
            spec = self.bench.spec("true")
            with _Pulse() as pulse:
                self.bench.start(spec)
                self.bench.end(spec.job)
            gaps.append(pulse.longest)
            if pulse.longest < _BLOCKED:
                return
        raise AssertionError(f"in each of {_TRIES} starts the event loop stood still for {min(gaps):.2f} s at least")

    def test_fifty_jobs_at_once_do_not_mix(self) -> None:
        """Each has its own exit code and output, and one report of its end, after its start."""

        def one(number: int) -> None:
            spec = self.bench.spec("sh", "-c", f"echo job {number}; exit {number}")
            spawned = self.bench.start(spec)
            assert spawned.job == spec.job
            assert self.bench.end(spec.job).exit_code == number
            assert self.bench.output(spec.job) == f"job {number}\n".encode()
            self.bench.runner.forget(spec.job)

        self.bench.together(one, 50)
