"""A runner that breaks the interface is told so, at the call, in words that say what to do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gevent
import pytest

from prouter.errors import Conflict
from prouter.runners import (
    Address,
    Capabilities,
    Exit,
    Kept,
    Queued,
    Reports,
    Runner,
    Setup,
    Sockets,
    Spawned,
    SpawnSpec,
    Usage,
)
from prouter.testing.checked_runner import CheckedRunner
from prouter.testing.recorded_reports import RecordedReports
from tests.runners.guarded.runner import GuardedRunner

JOB = "a" * 32
SPEC = SpawnSpec(JOB, ["true"], {}, "/")
RUNS = Spawned(JOB, 7, 1, 1.0)
ENDED = Exit(JOB, 0, None, None, 0.0, 0, 2.0)
HERE = Address("127.0.0.1", 1)


class Scripted(GuardedRunner):
    """Its methods return what the test says, or raise it."""

    capabilities = Capabilities(same_machine=True)

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.reports: Reports | None = None

    def open(self, reports: Reports) -> list[Kept]:
        self.reports = reports
        return cast(list[Kept], self._answer("open", []))

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        return cast(Spawned, self._answer("spawn", RUNS))

    def usage(self, job: str) -> Usage:
        return cast(Usage, self._answer("usage", Usage(0.0, 0, 1)))

    def processes(self, job: str) -> list[int]:
        return cast(list[int], self._answer("processes", [7]))

    def listeners(self, job: str) -> Sockets:
        return cast(Sockets, self._answer("listeners", Sockets([], [], [])))

    def connect(self, job: str, address: Address, timeout: float, *, assigned: bool = False) -> socket.socket:
        return cast(socket.socket, self._answer("connect", None))

    def kill(self, job: str) -> None:
        self._answer("kill", None)

    def forget(self, job: str) -> None:
        self._answer("forget", None)

    def close(self, *, end_jobs: bool) -> None:
        self._answer("close", None)

    def _answer(self, name: str, usual: object) -> object:
        answer = self._answers.get(name, usual)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


class Stage:
    """A scripted runner that is open, and the faults that were told."""

    def __init__(self, **answers: Any) -> None:
        self.faults: list[str] = []
        self.recorded = RecordedReports(self.faults.append)
        self.inner = Scripted(**answers)
        self.runner = CheckedRunner(self.inner, 0.3)

    def open(self) -> CheckedRunner:
        self.runner.open(self.recorded)
        return self.runner

    @property
    def reports(self) -> Reports:
        assert self.inner.reports is not None
        return self.inner.reports


WRONG: list[tuple[str, object, Callable[[Runner], object], str]] = [
    ("spawn", 7, lambda one: one.spawn(SPEC, 0), "spawn returned 7 (int); it has to return Spawned or Queued"),
    ("spawn", Spawned("b" * 32, 7, 1, 1.0), lambda one: one.spawn(SPEC, 0), "of another one"),
    ("spawn", Spawned(JOB, 0, 1, 1.0), lambda one: one.spawn(SPEC, 0), "pid is the number of the first process"),
    ("spawn", Queued(JOB), lambda one: one.spawn(SPEC, 0), "set Capabilities.queues"),
    ("spawn", KeyError("x"), lambda one: one.spawn(SPEC, 0), "spawn raised KeyError: 'x'. It may raise those errors"),
    ("spawn", lambda: gevent.sleep(60), lambda one: one.spawn(SPEC, 0.1), "spawn did not return within 0.4 s"),
    ("usage", (0.0, 0, 1), lambda one: one.usage(JOB), "has to return Usage"),
    ("processes", ("7",), lambda one: one.processes(JOB), "has to return list[int]"),
    ("listeners", [], lambda one: one.listeners(JOB), "has to return Sockets"),
    ("connect", None, lambda one: one.connect(JOB, HERE, 1.0), "connect returned None"),
    ("connect", socket.socket, lambda one: one.connect(JOB, HERE, 1.0), "call setblocking(False)"),
    ("connect", RuntimeError("x"), lambda one: one.connect(JOB, HERE, 1.0), "errors of prouter.runners or OSError"),
]


@pytest.mark.parametrize(("name", "answer", "call", "said"), WRONG)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_wrong_answers_are_told(name: str, answer: object, call: Callable[[Runner], object], said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        call(Stage(**{name: answer}).open())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "has to return list[Kept]"),
        ([JOB], "has to return list[Kept]"),
        ([Kept(JOB, {}, None, RUNS, Exit(JOB, 1, "SIGKILL", None, 0.0, 0, 1.0))], "one of both is None"),
        ([Kept(JOB, {}, None, RUNS, None, Queued(JOB))], "leave `queued` None"),
        ([Kept(JOB, {}, None, Spawned("b" * 32, 7, 1, 1.0), None)], "those of another job"),
    ],
)
def test_wrong_jobs_of_an_earlier_agent_are_told(kept: object, said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        Stage(open=lambda: kept).open()
    assert said in str(caught.value)


def test_errors_of_the_interface_pass() -> None:
    with pytest.raises(Conflict):
        Stage(spawn=Conflict("was started")).open().spawn(SPEC, 0)
    with pytest.raises(ConnectionRefusedError):
        Stage(connect=ConnectionRefusedError()).open().connect(JOB, HERE, 1.0)


def _early(stage: Stage) -> None:
    stage.open()
    stage.reports.exited(ENDED)


def _twice(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    stage.reports.exited(ENDED)
    stage.reports.exited(ENDED)


def _running_too(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    stage.reports.running(RUNS)


def _forgotten(stage: Stage) -> None:
    runner = stage.open()
    runner.spawn(SPEC, 0)
    stage.reports.exited(ENDED)
    runner.forget(JOB)
    stage.reports.exited(ENDED)


def _closed(stage: Stage) -> None:
    runner = stage.open()
    runner.spawn(SPEC, 0)
    runner.close(end_jobs=False)
    stage.reports.exited(ENDED)


def _odd_reason(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    stage.reports.exited(Exit(JOB, 0, None, "exited", 0.0, 0, 2.0))


def _number(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    stage.reports.exited(Exit(JOB, None, cast(str, 9), None, 0.0, 0, 2.0))


def _no_exit(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    stage.reports.exited(cast(Exit, {"job": JOB}))


def _in_a_thread(stage: Stage) -> None:
    stage.open().spawn(SPEC, 0)
    gevent.get_hub().threadpool.apply(stage.reports.exited, (ENDED,))


@pytest.mark.parametrize(
    ("story", "said"),
    [
        (_early, "which the agent does not know (yet)"),
        (_twice, "each end is told once"),
        (_running_too, "only a start that `spawn` or `open` gave as Queued is reported"),
        (_forgotten, "after `forget` had returned"),
        (_closed, "after `close` had returned"),
        (_odd_reason, "reason is None, if the exit status tells all, or one of agent_lost, cancelled"),
        (_number, "signal is a name such as SIGTERM"),
        (_no_exit, "it takes Exit"),
        (_in_a_thread, "was called in another thread"),
    ],
)
def test_wrong_reports_are_told(story: Callable[[Stage], None], said: str) -> None:
    stage = Stage()
    story(stage)
    assert len(stage.faults) == 1
    assert said in stage.faults[0]


def test_right_reports_are_no_fault() -> None:
    stage = Stage()
    stage.open().spawn(SPEC, 0)
    stage.reports.exited(ENDED)
    assert stage.faults == []
    assert stage.recorded.ends == {JOB: ENDED}


def test_a_real_runner_is_passed_on_to(tmp_path: Path) -> None:
    runner = CheckedRunner(GuardedRunner(Setup(tmp_path / "state", tmp_path / "jobs", 0.0)), 30.0)
    runner.open(RecordedReports())
    runner.hold(JOB, {"at": time.time()}, None)
    runner.kill(JOB)
    runner.forget(JOB)
    runner.close(end_jobs=True)
