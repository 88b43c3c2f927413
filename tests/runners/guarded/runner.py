"""The agent's end of the guarded runner."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent
from pydantic import Field

from prouter.runners import (
    Address,
    Capabilities,
    Conflict,
    Exit,
    Kept,
    NotFound,
    Options,
    Queued,
    Reports,
    Runner,
    Setup,
    Sockets,
    Spawned,
    SpawnSpec,
    StartFailed,
    Usage,
)
from prouter.runners.local import SameMachine

POLL = 0.01
"""Seconds between looks at the jobs' directories."""


class GuardedOptions(Options):
    """Jobs under guards of their own."""

    slots: int = Field(8, ge=1, description="Jobs that run at the same time; the others wait.")


class Job:
    """What the runner knows of one job. All that has to outlive the agent is in its directory.

    Attributes:
        asked: whether `spawn` was called, and has not failed.
        launched: whether it has a guard, or had one.
        starting: whether `spawn` waits for it, which returns before anything is reported.
        promised: whether `spawn` has returned `Queued`, so that the start has to be reported.
        over: whether its end was reported, or told by `open`.
    """

    def __init__(self, uid: str, directory: Path) -> None:
        self.uid = uid
        self.directory = directory
        self.asked = (directory / "spec.json").exists()
        self.launched = (directory / "begun").exists()
        self.starting = False
        self.promised = False
        self.over = False
        self.spawned: Spawned | None = None
        self.exit: Exit | None = None

    @property
    def waits(self) -> bool:
        """Whether its start is in the queue."""
        return self.asked and not self.launched and self.exit is None

    @property
    def runs(self) -> bool:
        """Whether it has a guard that has not written its end yet."""
        return self.launched and self.exit is None

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of a file, None if it does not exist."""
        with suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads((self.directory / name).read_text())
            return content
        return None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file as a whole."""
        new = self.directory / (name + ".new")
        new.write_text(json.dumps(content))
        new.rename(self.directory / name)

    def guard(self) -> int | None:
        """The pid of its guard, None if it has none (any more)."""
        begun = self.read("begun") if self.spawned is not None and self.exit is None else None
        return begun["pid"] if begun is not None else None

    def guard_is_dead(self) -> bool:
        """Whether a guard has begun and died without a word."""
        with suppress(FileNotFoundError), open(self.directory / "lock", "rb") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            told = any((self.directory / name).exists() for name in ("exit.json", "failed.json"))
            return (self.directory / "begun").exists() and not told
        return False


class GuardedRunner(Runner):
    """Runs each job under a guard process that outlives the agent; more jobs than slots wait."""

    capabilities = Capabilities(same_machine=True, queues=True)

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._directory = setup.state_dir / "jobs"
        self._jobs: dict[str, Job] = {}
        self._machine = SameMachine(self.processes)
        self._lifeline = os.pipe2(os.O_CLOEXEC) if setup.keep_for == 0 else None

    def open(self, reports: Reports) -> list[Kept]:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._setup.state_dir / "lock", "wb")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Conflict(f"{self._setup.state_dir} is another agent's") from None
        self._reports = reports
        for path in sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if (path / "record.json").exists():
                self._jobs[path.name] = Job(path.name, path)
        for job in self._jobs.values():
            self._look(job)
            job.promised = job.asked and job.spawned is None
            job.over = job.exit is not None
        kept = [self._kept(job) for job in self._jobs.values()]
        self._follower = gevent.spawn(self._follow)
        return kept

    def _kept(self, job: Job) -> Kept:
        kept = job.read("record.json")
        assert kept is not None
        queued = Queued(job.uid, "starting" if job.launched else "slots") if job.promised and not job.exit else None
        return Kept(job.uid, kept["record"], kept["sandbox"], job.spawned, job.exit, queued)

    def hold(self, job: str, record: dict[str, Any], remove_on_loss: str | None) -> None:
        if job in self._jobs:
            raise Conflict(f"job '{job}' is known", job=job)
        directory = self._directory / job
        directory.mkdir()
        self._jobs[job] = Job(job, directory)
        self._jobs[job].write("record.json", {"record": record, "sandbox": remove_on_loss})

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        job = self._jobs.get(spec.job)
        if job is not None and job.asked:
            raise Conflict(f"job '{spec.job}' was started already", job=spec.job)
        if job is None:
            self.hold(spec.job, spec.record, spec.remove_on_loss)
            job = self._jobs[spec.job]
        job.write("record.json", {"record": spec.record, "sandbox": spec.remove_on_loss})
        env = {**spec.env, "PROUTER_JOB_ID": spec.job}
        outputs = {"stdout": spec.stdout or os.devnull, "stderr": spec.stderr or os.devnull}
        job.write(
            "spec.json",
            {"argv": spec.argv, "env": env, "cwd": spec.cwd, "sandbox": spec.remove_on_loss, **outputs},
        )
        job.asked = job.starting = True
        self._launch_next()
        try:
            return self._started(job, wait)
        finally:
            job.starting = False

    def _started(self, job: Job, wait: float) -> Spawned | Queued:
        deadline = time.monotonic() + wait
        while job.spawned is None:
            failed = job.read("failed.json")
            if failed is not None:
                self._begin_again(job)
                raise StartFailed(failed["text"], job=job.uid)
            if time.monotonic() >= deadline and not (job.launched and wait):
                job.promised = True
                return Queued(job.uid, "slots")
            gevent.sleep(POLL)
            self._look(job)
        return job.spawned

    def _begin_again(self, job: Job) -> None:
        for name in ("begun", "spec.json", "failed.json"):
            (job.directory / name).unlink()
        job.asked = job.launched = False

    def _launch_next(self) -> None:
        """Start guards for as many waiting jobs as there are free slots, those that came first at first."""
        free = self._setup.options.slots - sum(job.runs for job in self._jobs.values())
        for job in [job for job in self._jobs.values() if job.waits][: max(0, free)]:
            job.launched = True
            lifeline = [self._lifeline[0]] if self._lifeline is not None else []
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("guard.py")),
                 str(job.directory), *map(str, lifeline)],
                stdin=subprocess.DEVNULL, env={}, pass_fds=lifeline, start_new_session=True,
            )  # fmt: skip
            gevent.spawn(_reap, guard)

    def _follow(self) -> None:
        while True:
            gevent.sleep(POLL)
            for job in list(self._jobs.values()):
                if job.asked and not job.over and not job.starting:
                    self._report(job)
            self._launch_next()

    def _report(self, job: Job) -> None:
        before = job.spawned
        self._look(job)
        if job.promised and before is None and job.spawned is not None:
            self._reports.running(job.spawned)
        failed = job.read("failed.json") if job.promised else None
        if failed is not None:
            job.exit = Exit(job.uid, None, None, "start_failed", 0.0, 0, time.time(), text=failed["text"])
        if job.exit is not None:
            job.over = True
            self._machine.forget(job.uid)
            gevent.spawn(self._reports.exited, job.exit)

    def _look(self, job: Job) -> None:
        """Read what the guard has written."""
        if not job.launched or job.exit is not None:
            return
        ended = job.read("exit.json")
        if job.spawned is None and (spawned := job.read("spawned.json")) is not None:
            job.spawned = Spawned(job.uid, **spawned)
        if ended is not None:
            job.exit = Exit(job.uid, **ended)
        elif job.guard_is_dead():
            job.exit = Exit(job.uid, None, None, "agent_lost", 0.0, 0, time.time())

    def update_record(self, job: str, record: dict[str, Any]) -> None:
        known = self._known(job)
        known.write("record.json", {**(known.read("record.json") or {}), "record": record})

    def signal(self, job: str, signum: int, *, tree: bool = True) -> None:
        self._machine.signal(job, signum, tree=tree)

    def kill(self, job: str) -> None:
        known = self._known(job)
        if known.waits:
            with suppress(FileExistsError):  # The guard of an agent that died was faster.
                (known.directory / "begun").touch(exist_ok=False)
                known.exit = Exit(job, None, None, "cancelled", 0.0, 0, time.time())
                known.write("exit.json", {name: value for name, value in asdict(known.exit).items() if name != "job"})
            known.launched = True
        while known.runs:
            guard = known.guard()
            if guard is not None:
                with suppress(ProcessLookupError):
                    os.kill(guard, signal.SIGTERM)
            gevent.sleep(POLL)

    def usage(self, job: str) -> Usage:
        return self._machine.usage(job)

    def processes(self, job: str) -> list[int]:
        known = self._known(job)
        guard = known.guard()
        if guard is None or known.spawned is None:
            raise Conflict(f"job '{job}' does not run", job=job)
        first = known.spawned.pid
        pids = [pid for pid in self._machine.tree(guard) if pid != guard]
        return sorted(pids, key=lambda pid: pid != first)

    def listeners(self, job: str) -> Sockets:
        return self._machine.listeners(job)

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        self.processes(job)
        return self._machine.connect(job, address, timeout, assigned=assigned)

    def forget(self, job: str) -> None:
        known = self._known(job)
        if known.waits or known.runs:
            raise Conflict(f"job '{job}' runs, or waits", job=job)
        del self._jobs[job]
        shutil.rmtree(known.directory)

    def close(self, *, end_jobs: bool) -> None:
        self._follower.kill()
        if end_jobs or self._setup.keep_for == 0:
            quiet = _Quiet()
            self._reports = quiet
            self._follower = gevent.spawn(self._follow)
            for job in [*(job for job in self._jobs.values() if job.waits), *self._jobs.values()]:
                self.kill(job.uid)
            for job in list(self._jobs.values()):
                kept = job.read("record.json") or {}
                shutil.rmtree(kept.get("sandbox") or job.directory, ignore_errors=True)
                self.forget(job.uid)
            self._follower.kill()
        self._machine.close()
        self._lock.close()

    def _known(self, job: str) -> Job:
        known = self._jobs.get(job)
        if known is None:
            raise NotFound(f"job '{job}' is not found", job=job)
        return known


class _Quiet(Reports):
    """Nobody listens any more."""

    def queued(self, queued: Queued) -> None:
        pass

    def running(self, spawned: Spawned) -> None:
        pass

    def exited(self, end: Exit) -> None:
        pass

    def port(self, job: str, port: int) -> None:
        pass


def _reap(guard: subprocess.Popen[bytes]) -> None:
    poll: Callable[[], int | None] = guard.poll
    while poll() is None:
        gevent.sleep(POLL * 5)
