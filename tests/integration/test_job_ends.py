"""Ends of the job manager's jobs: limits, stops, signals and removal."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gevent
import pytest

from prouter.errors import Conflict, InvalidRequest, NotFound, PRouterError, StartFailed
from prouter.jobs import Reason, State
from prouter.processes import process_tree
from prouter.requests import Limits
from tests.support.job_manager import CONNECTION, Managers, Observed, gone, python
from tests.support.keeper import ESCAPE, until


def test_a_job_ends_when_its_time_is_up(observed: Observed) -> None:
    record = observed.ended(observed.run("sleep", "1000", limits={"timeout": 0.2}))
    assert (record.reason, record.signal) == (Reason.TIMEOUT, "SIGTERM")
    assert record.error == "it ran longer than its limit of 0.2 seconds"


def test_the_agents_ceiling_holds_without_a_limit(managers: Managers) -> None:
    jobs = managers.open(ceilings=Limits(timeout=0.2))
    assert jobs.ended(jobs.run("sleep", "1000")).reason is Reason.TIMEOUT


@pytest.mark.parametrize(
    "fill",
    [
        "head -c 3000000 /dev/zero > big",
        "mkdir d; for i in $(seq 300); do echo $i > d/$i; done",
        "exec 3> big; rm big; head -c 3000000 /dev/zero >&3",
    ],
    ids=["one file", "many small files", "a deleted file"],
)
def test_a_sandbox_over_its_limit_ends_the_job(observed: Observed, fill: str) -> None:
    uid = observed.run("sh", "-c", f"{fill}; sleep 1000", limits={"sandbox_size": 1_000_000})
    record = observed.ended(uid)
    assert record.reason is Reason.SANDBOX
    assert record.error is not None
    assert record.error.endswith("its limit is 1000000")


@pytest.mark.parametrize(
    ("limits", "code", "reason"),
    [
        ({"cpu_seconds": 0.3}, "while True: pass", Reason.CPU),
        ({"memory": 50_000_000}, "x = bytearray(200_000_000)\nwhile True: pass", Reason.MEMORY),
    ],
)
def test_the_runners_limits_are_told_as_the_reason(
    observed: Observed, limits: dict[str, Any], code: str, reason: Reason
) -> None:
    record = observed.ended(observed.run(*python(code), limits=limits))
    assert record.reason is reason
    assert record.error is not None
    assert f"limit of {next(iter(limits.values()))} " in record.error


def test_a_log_is_bounded_while_the_job_writes(managers: Managers) -> None:
    jobs = managers.open(log_limit=1_000_000)
    uid = jobs.run("sh", "-c", "head -c 5000000 /dev/zero; echo done; sleep 1000")
    log = jobs.manager.sandbox(uid).logs.path("stdout")
    until(lambda: log.exists() and log.stat().st_size >= 5_000_005)
    until(lambda: log.stat().st_blocks * 512 <= 1_000_000)
    assert jobs.manager.log(uid, "stdout").read(0).data.startswith(b"[prouter: ")


def test_a_log_is_bounded_when_the_job_has_ended(managers: Managers) -> None:
    jobs = managers.open(log_limit=1_000_000)
    uid = jobs.run("head", "-c", "5000000", "/dev/zero")
    jobs.ended(uid)
    log = jobs.manager.sandbox(uid).logs.path("stdout")
    assert log.stat().st_size == 5_000_000
    until(lambda: log.stat().st_blocks * 512 <= 1_000_000)


# Ends on demand.


def test_stop_ends_the_whole_tree_gracefully(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "trap 'echo bye > said; exit 5' TERM; sleep 1000 & echo $! > child; wait")
    child = int(observed.file(uid, "child"))
    record = observed.manager.stop(uid, 10)
    assert (record.state, record.reason, record.exit_code) == (State.FINISHED, Reason.STOPPED, 5)
    assert observed.file(uid, "said") == "bye\n"
    assert gone(child)
    assert observed.manager.stop(uid, 10) == record


PARTING = "trap 'echo bye; exit 7' TERM; echo $$ > ready; while :; do sleep 0.05; done"
"""A shell that ends with status 7 when it is asked to."""


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    process = process_tree.read_process(pid)
    return process is not None and process.state == "T"


def test_a_stopped_job_hears_that_it_is_to_end(observed: Observed) -> None:
    uid = observed.run("sh", "-c", PARTING)
    pid = int(observed.file(uid, "ready"))
    observed.manager.signal(uid, "STOP")
    until(lambda: stopped(pid))
    record = observed.manager.stop(uid, 30)
    assert (record.reason, record.exit_code, record.signal) == (Reason.STOPPED, 7, None)
    assert observed.file(uid, ".pagent.stdout") == "bye\n"


def test_a_stopped_child_in_a_session_of_its_own_hears_it_too(observed: Observed) -> None:
    script = "trap 'wait; exit 3' TERM; setsid sh -c \"$1\" > said & wait; wait"
    uid = observed.run("sh", "-c", script, "sh", PARTING)
    child = int(observed.file(uid, "ready"))
    os.kill(child, signal.SIGSTOP)
    until(lambda: stopped(child))
    assert observed.manager.stop(uid, 30).exit_code == 3
    assert observed.file(uid, "said") == "bye\n"


def test_a_stopped_job_hears_that_its_time_is_up(observed: Observed) -> None:
    uid = observed.run("sh", "-c", PARTING, limits={"timeout": 1})
    observed.file(uid, "ready")
    observed.manager.signal(uid, "STOP")
    record = observed.ended(uid, 20)
    assert (record.reason, record.exit_code) == (Reason.TIMEOUT, 7)


def test_stop_kills_what_does_not_end_in_time(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "trap '' TERM; echo yes > trapped; while :; do sleep 0.1; done")
    observed.file(uid, "trapped")
    began = time.monotonic()
    record = observed.manager.stop(uid, 0.3)
    assert time.monotonic() - began >= 0.3
    assert (record.reason, record.signal) == (Reason.STOPPED, "SIGKILL")


def test_stopping_a_job_that_starts_fails_its_start(observed: Observed) -> None:
    uid = observed.create()
    start = gevent.spawn(observed.start, uid, "sleep", "1000", port_expected_count=1)
    until(lambda: observed.manager.record(uid).state is State.PENDING)
    assert observed.manager.stop(uid, 5).reason is Reason.STOPPED
    start.join(5)
    assert isinstance(start.exception, StartFailed)


def test_a_job_that_was_not_started_cannot_be_stopped_or_signalled(observed: Observed) -> None:
    uid = observed.create()
    with pytest.raises(Conflict, match="it is NEW"):
        observed.manager.stop(uid, 1)
    with pytest.raises(Conflict, match="it is NEW"):
        observed.manager.signal(uid, "TERM")


def test_a_signal_reaches_the_first_process(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "trap 'exit 9' USR1; echo yes > trapped; while :; do sleep 0.05; done")
    observed.file(uid, "trapped")
    observed.manager.signal(uid, "usr1")
    assert observed.ended(uid).exit_code == 9
    with pytest.raises(Conflict, match="it is FINISHED"):
        observed.manager.signal(uid, "TERM")
    with pytest.raises(InvalidRequest):
        observed.manager.signal(uid, "NOPE")


def test_usage_is_that_of_the_tree(observed: Observed) -> None:
    uid = observed.run(*python("x = bytearray(40_000_000)\nopen('up', 'w').write('y')\nwhile True: pass"))
    observed.file(uid, "up")
    until(lambda: (observed.manager.usage(uid).cpu_seconds or 0) > 0)
    assert (observed.manager.usage(uid).rss_bytes or 0) > 40_000_000
    assert observed.manager.record(uid).cpu_seconds is None
    observed.manager.stop(uid, 1)
    record = observed.manager.usage(uid)
    assert record == observed.manager.record(uid)
    assert (record.cpu_seconds or 0) > 0


# Removal.


def test_remove_ends_what_runs_and_leaves_nothing(observed: Observed) -> None:
    uid = observed.run(*python(ESCAPE))
    escaped = int(observed.file(uid, "escaped"))
    record = observed.manager.record(uid)
    sandbox = observed.manager.sandbox(uid).root
    assert record.pid is not None
    assert observed.manager.remove(uid) == record
    assert gone(record.pid)
    assert gone(escaped)
    assert not sandbox.exists()
    assert observed.states(uid) == [State.NEW, State.RUNNING, State.FINISHED, State.CLOSED]
    assert observed.removed[-1].reason is Reason.REMOVED


def test_a_repeated_remove_gets_the_same_answer(observed: Observed) -> None:
    uid = observed.run("sleep", "1000")
    removes = [gevent.spawn(observed.manager.remove, uid) for _ in range(3)]
    gevent.joinall(removes, raise_error=True)
    assert {remove.value.state for remove in removes if remove.value} == {State.RUNNING}
    assert observed.manager.remove(uid).state is State.RUNNING
    assert len(observed.removed) == 1


def test_a_removed_job_is_not_made_again(observed: Observed) -> None:
    uid = observed.create()
    assert observed.manager.remove(uid).state is State.NEW
    with pytest.raises(NotFound):
        observed.manager.create(uid, CONNECTION, "job")
    with pytest.raises(NotFound):
        observed.start(uid, "true")


def test_removing_a_job_that_starts_fails_its_start(observed: Observed) -> None:
    uid = observed.create()
    start = gevent.spawn(observed.start, uid, "sleep", "1000", port_expected_count=1)
    until(lambda: observed.manager.record(uid).state is State.PENDING)
    assert observed.manager.remove(uid).state is State.PENDING
    start.join(5)
    assert isinstance(start.exception, StartFailed)
    assert observed.removed[-1].reason is Reason.REMOVED


def test_removing_a_job_while_it_is_spawned_leaves_nothing(observed: Observed) -> None:
    uids = [observed.create() for _ in range(10)]
    starts = [gevent.spawn(observed.start, uid, "sleep", "1000") for uid in uids]
    removes = [gevent.spawn(observed.manager.remove, uid) for uid in uids]
    gevent.joinall(removes, timeout=10, raise_error=True)
    gevent.joinall(starts, timeout=10)
    assert list(observed.root.iterdir()) == [observed.root / ".agent.lock"]
    assert all(isinstance(start.exception, PRouterError) for start in starts)
    assert {record.pid for record in observed.removed} == {None}


def test_all_can_be_removed_at_once(observed: Observed) -> None:
    observed.create()
    observed.run("sleep", "1000")
    observed.ended(observed.run("true"))
    observed.manager.remove_all(Reason.AGENT_LOST)
    assert observed.manager.records() == []
    assert [record.reason for record in observed.removed].count(Reason.AGENT_LOST) == 1
    assert list(observed.root.iterdir()) == [observed.root / ".agent.lock"]
