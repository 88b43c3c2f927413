"""A runner that fails, or is away: the agent starts all the same, no job ends before its processes do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from prouter.agent.jobs import reclaiming
from prouter.agent.jobs.ends import ending
from prouter.agent.jobs.manager import JobManager
from prouter.agent.jobs.origin import Origin
from prouter.agent.jobs.starts import starting
from prouter.errors import AgentUnavailable, Conflict, NotFound, PRouterError, StartFailed
from prouter.jobs import Reason, State
from prouter.requests import validated
from prouter.runners import Limits, Queued, Setup, Spawned, SpawnSpec
from prouter.runners.local.runner import LocalRunner
from prouter.template_requests import Template
from tests.runners.guarded.runner import GuardedOptions, GuardedRunner
from tests.support.job_manager import CONNECTION, Managers, Observed, gone, new_uid
from tests.support.keeper import until

AWAY = "the shared directory cannot be written"
SLEEP = {"args": ["sleep", "1000"], "env": {}, "port_expected_count": 0}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent waits for no end for long, and tries again soon."""
    monkeypatch.setattr(ending, "_END_TIMEOUT", 0.3)
    monkeypatch.setattr(ending, "_NEXT_TRY", 0.05)
    monkeypatch.setattr(starting, "_NEXT_KILL", 0.05)
    monkeypatch.setattr(reclaiming, "_FIRST_REST", 0.05)


class Away:
    """Makes a method of a runner fail until it is back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        self.on = True
        self.calls = 0
        method = getattr(kind, name)

        def fail(*args: Any, **more: Any) -> Any:
            self.calls += 1
            if self.on:
                raise AgentUnavailable(AWAY)
            return method(*args, **more)

        monkeypatch.setattr(kind, name, fail)


class Slow(GuardedRunner):
    """A runner with one slot, whose starts take until they are let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(Setup(directory / "state", directory / "jobs", 60.0, "off", GuardedOptions(slots=1)))
        self.asked = Event()
        self.go = Event()
        self.go.set()

    def spawn(self, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        self.asked.set()
        self.go.wait()
        return super().spawn(spec, wait)


@pytest.fixture
def slow(managers: Managers, tmp_path: Path) -> Iterator[tuple[Observed, Slow]]:
    """A manager whose runner's only slot is taken."""
    runner = Slow(tmp_path)
    jobs = managers.open(runner=runner)
    jobs.run("sleep", "1000")
    runner.asked.clear()
    runner.go.clear()
    yield jobs, runner
    runner.go.set()


def test_an_agent_starts_while_a_warm_job_cannot_be_killed(
    managers: Managers, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    templates = {"web": validated(Template, {**SLEEP, "size": 1})}
    before = managers.open(templates=templates, keep_for=60)
    mine = before.run("sleep", "1000")
    before.manager.pool.serve(CONNECTION)
    until(lambda: before.manager.pool.figures(CONNECTION)["web"]["ready"])
    (warm,) = {path.name for path in before.root.iterdir() if len(path.name) == 32} - {mine}
    with monkeypatch.context() as patch:
        patch.setattr(type(before.manager.pool), "close", lambda pool: pool._greenlet.kill())
        before.manager.close(end_jobs=False)  # As if it was killed: a pool that is closed ends its jobs.

    away = Away(monkeypatch, LocalRunner, "kill")
    after = managers.open(keep_for=60)
    assert [record.uid for record in after.manager.records()] == [mine]
    until(lambda: away.calls >= 2)
    assert (after.root / warm).is_dir(), "its processes run, so its sandbox is theirs"
    assert after.run("true")
    away.on = False
    until(lambda: not (after.root / warm).exists())
    with pytest.raises(NotFound):
        after.runner.processes(warm)
    assert after.manager.record(mine).state is State.RUNNING


def test_a_record_that_makes_no_sense_costs_its_own_job_only(
    managers: Managers, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    before = managers.open(keep_for=60)
    good, odd = before.run("sleep", "1000"), before.run("sleep", "1000")
    pid = before.manager.record(odd).pid or 0
    job = before.manager._jobs.find(odd)
    record = {name: value for name, value in before.manager._kept(job).items() if name != "reported"}
    before.runner.update_record(odd, record)
    before.manager.close(end_jobs=False)
    after = managers.open(keep_for=60)
    assert [record.uid for record in after.manager.records()] == [good]
    until(lambda: gone(pid) and not (after.root / odd).exists())


def test_a_job_that_another_router_wants_is_wanted_after_a_restart(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    uid = new_uid()
    before.manager.create(uid, CONNECTION, "job", Origin(router="one"))
    before.manager.create(uid, CONNECTION, "job", Origin(router="two"))
    before.manager.close(end_jobs=False)
    after = managers.open(keep_for=60)
    with pytest.raises(Conflict) as caught:
        after.manager.remove(uid, unwanted_by="one")
    assert caught.value.code == "job_wanted"
    before = after
    before.manager.create(uid, CONNECTION, "job", Origin(router="one"))
    before.manager.close(end_jobs=False)
    with pytest.raises(Conflict):
        managers.open(keep_for=60).manager.remove(uid, unwanted_by="two")


def test_a_router_is_told_that_its_wish_cannot_be_kept(managers: Managers, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = managers.open()
    uid = new_uid()
    jobs.manager.create(uid, CONNECTION, "job", Origin(router="one"))
    away = Away(monkeypatch, LocalRunner, "update_record")
    for _ in range(2):
        with pytest.raises(AgentUnavailable):
            jobs.manager.create(uid, CONNECTION, "job", Origin(router="two"))
    away.on = False
    assert jobs.manager.create(uid, CONNECTION, "job", Origin(router="two")).uid == uid
    with pytest.raises(Conflict):
        jobs.manager.remove(uid, unwanted_by="one")


def test_a_start_that_cannot_be_taken_out_of_the_queue_is_not_finished(
    slow: tuple[Observed, Slow], monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    jobs, runner = slow
    uid = jobs.create()
    start = gevent.spawn(jobs.manager.start, uid, SLEEP, "r", 0.0)
    runner.asked.wait(5)
    away = Away(monkeypatch, Slow, "kill")
    stop = gevent.spawn(jobs.manager.stop, uid, 0.0)
    gevent.sleep(0)
    runner.go.set()
    with pytest.raises(AgentUnavailable, match=AWAY):
        stop.get(timeout=5)
    calls = away.calls
    until(lambda: away.calls >= 2)
    gevent.sleep(0.4)  # More than the time in which the start gives up to wait for the end.
    record = jobs.manager.record(uid)
    assert (record.state, record.queue is not None, calls > 0) == (State.NEW, True, True)
    away.on = False
    assert jobs.manager.stop(uid, 0.0).reason is Reason.STOPPED
    assert start.get(timeout=5).state is State.NEW, "it was answered while it waited"
    with pytest.raises(StartFailed, match="was ended while it waited"):
        jobs.manager.start(uid, SLEEP, "r")


def test_a_stop_that_comes_before_the_start_is_queued_does_not_wait_for_its_turn(
    slow: tuple[Observed, Slow], monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    jobs, runner = slow
    uid = jobs.create()
    gevent.spawn(jobs.manager.start, uid, SLEEP, "r", 0.0)
    runner.asked.wait(5)
    job = jobs.manager._jobs.find(uid)
    job.change(queue=None)  # As before the agent has told that the start waits.
    away = Away(monkeypatch, Slow, "kill")
    stop = gevent.spawn(jobs.manager.stop, uid, 0.0)
    gevent.sleep(0)
    runner.go.set()
    with pytest.raises(AgentUnavailable, match=AWAY):
        stop.get(timeout=5)
    away.on = False
    assert jobs.manager.stop(uid, 0.0).reason is Reason.STOPPED
    assert runner._jobs[uid].exit is not None


def test_a_failed_start_is_finished_when_its_process_has_ended(
    managers: Managers, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    jobs = managers.open(keep_for=60)
    away = Away(monkeypatch, LocalRunner, "kill")
    uid = jobs.create()
    with pytest.raises(StartFailed, match=AWAY) as caught:
        jobs.start(uid, "sleep", "1000", expose={"port": "assign", "timeout": 0.2})
    until(lambda: away.calls >= 3)
    record = jobs.manager.record(uid)
    pid = record.pid or 0
    assert record.state is State.PENDING
    assert not gone(pid)
    jobs.manager.close(end_jobs=False)

    jobs = managers.open(keep_for=60)
    assert jobs.manager.record(uid).state is State.PENDING
    away.on = False
    ended = jobs.ended(uid)
    assert (ended.state, ended.reason) == (State.FINISHED, Reason.START_FAILED)
    assert gone(pid)
    with pytest.raises(StartFailed) as again:
        jobs.start(uid, "sleep", "1000", expose={"port": "assign", "timeout": 0.2})
    assert again.value.detail == caught.value.detail


class Checking(LocalRunner):
    """A runner that breaks a rule: its check blocks."""

    def check(self, limits: Limits, resources: Any, options: Any) -> None:
        gevent.sleep(0.1)


@pytest.fixture
def checking(managers: Managers, tmp_path: Path) -> Observed:
    return managers.open(runner=Checking(Setup(tmp_path / "state", tmp_path / "jobs", 0)))


def test_a_start_that_is_repeated_during_a_slow_check_starts_once(checking: Observed) -> None:
    uid = checking.create()
    starts = [gevent.spawn(checking.manager.start, uid, SLEEP, "r") for _ in range(3)]
    other = gevent.spawn(checking.manager.start, uid, SLEEP, "another")
    assert {start.get(timeout=5).state for start in starts} == {State.RUNNING}
    with pytest.raises(Conflict, match="was started already"):
        other.get(timeout=5)
    assert checking.states(uid) == [State.NEW, State.RUNNING]


def test_a_job_that_is_removed_during_a_slow_check_is_not_started(checking: Observed) -> None:
    uid = checking.create()
    start = gevent.spawn(checking.manager.start, uid, SLEEP, "r")
    gevent.sleep(0)
    checking.manager.remove(uid)
    with pytest.raises(NotFound):
        start.get(timeout=5)
    with pytest.raises(NotFound):
        checking.runner.processes(uid)


@pytest.mark.parametrize("error", [AgentUnavailable(AWAY), RuntimeError("a fault of the runner")])
def test_a_creation_that_failed_can_be_repeated(
    managers: Managers, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    jobs = managers.open(max_jobs=1)
    uid = new_uid()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "hold", fail)
        with pytest.raises(type(error)):
            jobs.manager.create(uid, CONNECTION, "job")
    assert jobs.manager.records() == []
    assert jobs.manager.create(uid, CONNECTION, "job").uid == uid


def test_a_sandbox_that_could_not_be_completed_is_made_again(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = managers.open()
    uid = new_uid()
    opening = os.open

    def fail(path: Any, *args: Any, **more: Any) -> int:
        if not isinstance(path, int) and os.fsdecode(path).endswith(uid):
            raise OSError(24, "Too many open files")
        return opening(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(PRouterError):
            jobs.manager.create(uid, CONNECTION, "job")
    assert jobs.manager.create(uid, CONNECTION, "job").uid == uid


def test_a_creation_that_is_repeated_while_the_runner_is_asked_waits_for_it(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = managers.open()
    uid, go, holds = new_uid(), Event(), []
    hold = LocalRunner.hold

    def slow_hold(runner: LocalRunner, job: str, *more: Any) -> None:
        holds.append(job)
        go.wait()
        if len(holds) == 1:
            raise AgentUnavailable(AWAY)
        hold(runner, job, *more)

    monkeypatch.setattr(LocalRunner, "hold", slow_hold)
    create: Any = JobManager.create
    first, second = (
        gevent.spawn(create, jobs.manager, uid, CONNECTION, "job", Origin(router=router)) for router in ("one", "two")
    )
    until(lambda: holds)
    gevent.sleep(0.05)
    assert not second.ready()
    go.set()
    with pytest.raises(AgentUnavailable):
        first.get(timeout=5)
    assert second.get(timeout=5).uid == uid
    assert jobs.manager.record(uid).state is State.NEW


def test_a_time_limit_holds_once_the_job_can_be_killed(
    managers: Managers, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(ending, "_LIMIT_GRACE", 0.05)
    jobs = managers.open()
    away = Away(monkeypatch, LocalRunner, "kill")
    uid = jobs.run("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", limits={"timeout": 0.2})
    until(lambda: away.calls >= 2)
    assert jobs.manager.record(uid).state is State.RUNNING
    away.on = False
    assert jobs.ended(uid).reason is Reason.TIMEOUT


def test_a_warm_job_that_cannot_be_started_is_removed_whatever_the_error(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[object] = []

    def fail(_: LocalRunner, *more: object) -> None:
        checks.append(more)
        raise KeyError("a fault of the runner")

    monkeypatch.setattr(LocalRunner, "check", fail)
    jobs = managers.open(templates={"web": validated(Template, {**SLEEP, "size": 1})})
    jobs.manager.pool.serve(CONNECTION)
    until(lambda: checks)
    until(lambda: not [path for path in jobs.root.iterdir() if len(path.name) == 32])
    assert jobs.manager.pool.figures(CONNECTION)["web"]["failures"] >= 1


def test_a_job_that_is_removed_while_the_runner_is_asked_to_hold_it_is_forgotten(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = managers.open(keep_for=60)
    uid, asked, go = new_uid(), Event(), Event()
    hold = LocalRunner.hold

    def slow_hold(runner: LocalRunner, *job: Any) -> None:
        asked.set()
        go.wait()
        hold(runner, *job)

    monkeypatch.setattr(LocalRunner, "hold", slow_hold)
    creating = gevent.spawn(jobs.manager.create, uid, CONNECTION, "job")
    asked.wait(5)
    jobs.manager.remove_all(Reason.AGENT_LOST)
    go.set()
    with pytest.raises(NotFound):
        creating.get(timeout=5)
    jobs.manager.close(end_jobs=False)
    assert managers.open(keep_for=60).manager.records() == []
