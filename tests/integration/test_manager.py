"""The job manager with real jobs: their life from creation to removal, its root, and the end of the agent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import gevent
import pytest

from prouter.agent.service import Service
from prouter.errors import Conflict, Forbidden, InvalidRequest, LimitReached, NotFound, StartFailed
from prouter.jobs import Reason, State
from tests.support.job_manager import CONNECTION, Managers, Observed, gone, new_uid
from tests.support.keeper import until


def test_a_job_without_a_port_goes_through_its_states(observed: Observed) -> None:
    uid = observed.create("name")
    sandbox = observed.manager.sandbox(uid).root
    assert sandbox.stat().st_mode & 0o777 == 0o700
    assert observed.start(uid, "true").state is State.RUNNING
    record = observed.ended(uid)
    assert (record.reason, record.exit_code, record.signal, record.error) == (Reason.EXITED, 0, None, None)
    assert (record.name, record.connection, record.args, record.pid) == ("name", CONNECTION, ["true"], None)
    assert record.created_at <= (record.started_at or 0) <= (record.finished_at or 0) <= time.time()
    assert observed.manager.remove(uid) == record
    assert observed.states(uid) == [State.NEW, State.RUNNING, State.FINISHED, State.CLOSED]
    revisions = [record.revision for record in observed.records + observed.removed]
    assert revisions == sorted(set(revisions))
    assert not sandbox.exists()
    assert observed.manager.records() == []


def test_a_router_that_asks_for_it_gets_the_revision_of_the_newest_record(observed: Observed) -> None:
    service = Service(observed.manager, lambda: None)
    uid = new_uid()
    create = {"uid": uid, "connection": CONNECTION, "name": "job"}
    assert service.carry_out("job.create", {**create, "answer": "revision"}) == {
        "revision": observed.records[-1].revision
    }
    assert service.carry_out("job.create", create) == {"record": observed.records[-1].to_wire()}
    request = {"args": ["sleep", "1000"], "env": {}, "port_expected_count": 0}
    start = {"uid": uid, "request": request, "request_id": "start-1"}
    assert service.carry_out("job.start", {**start, "answer": "revision"}) == {
        "revision": observed.records[-1].revision
    }
    running = observed.records[-1]
    assert running.state is State.RUNNING
    stop = {"uid": uid, "grace": 0, "answer": "revision"}
    assert service.carry_out("job.stop", stop) == {"revision": observed.ended(uid).revision}
    again = service.carry_out("job.start", {**start, "answer": "revision"})
    assert again == {"record": running.to_wire()}, "not the newest any more: routers have it no longer"


def test_exit_code_and_signal_are_told(observed: Observed) -> None:
    assert observed.ended(observed.run("sh", "-c", "exit 7")).exit_code == 7
    record = observed.ended(observed.run("sh", "-c", "kill -USR1 $$"))
    assert (record.reason, record.exit_code, record.signal) == (Reason.SIGNALED, None, "SIGUSR1")


def test_a_job_is_created_once(observed: Observed) -> None:
    uid = observed.create()
    assert observed.manager.create(uid, CONNECTION, "again") == observed.manager.record(uid)
    assert observed.states(uid) == [State.NEW]


@pytest.mark.parametrize("uid", ["", "..", "a/b", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "../" + "a" * 29])
def test_a_uid_never_leads_elsewhere(observed: Observed, uid: str) -> None:
    with pytest.raises(InvalidRequest):
        observed.manager.create(uid, CONNECTION, "job")


def test_unknown_jobs_are_not_found(observed: Observed) -> None:
    uid = new_uid()
    for call in (
        lambda: observed.manager.record(uid),
        lambda: observed.manager.start(uid, {}, "r"),
        lambda: observed.manager.remove(uid),
        lambda: observed.manager.stop(uid, 1),
        lambda: observed.manager.signal(uid, "TERM"),
        lambda: observed.manager.usage(uid),
        lambda: observed.manager.sandbox(uid),
    ):
        with pytest.raises(NotFound, match=f"job '{uid}' is not found"):
            call()


def test_slots_are_limited_to_jobs_that_have_not_ended(managers: Managers) -> None:
    jobs = managers.open(max_jobs=2)
    first, second = jobs.create(), jobs.create()
    with pytest.raises(LimitReached) as caught:
        jobs.create()
    assert caught.value.retry_after
    jobs.start(first, "true")
    jobs.ended(first)
    third = jobs.create()
    with pytest.raises(LimitReached):
        jobs.create()
    jobs.manager.remove(second)
    assert jobs.create() not in (first, second, third)


def test_two_agents_do_not_share_a_root(observed: Observed, tmp_path: Path) -> None:
    other = Observed(tmp_path / "other")
    other.manager._root = type(other.manager._root)(observed.root)
    with pytest.raises(Conflict, match="in use by another agent"):
        other.manager.open()


def test_a_root_that_others_may_write_to_is_refused(managers: Managers, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    with pytest.raises(Forbidden, match="others may write"):
        managers.open()


def test_what_was_left_of_jobs_that_are_gone_is_removed_and_nothing_else(managers: Managers, tmp_path: Path) -> None:
    leftover, other, link = tmp_path / "jobs" / new_uid(), tmp_path / "jobs" / "other", tmp_path / "jobs" / new_uid()
    (leftover / "sub").mkdir(parents=True)
    other.mkdir()
    link.symlink_to(tmp_path)
    managers.open()
    assert not leftover.exists()
    assert other.exists()
    assert link.is_symlink()


def test_closing_ends_all_jobs_and_removes_all_sandboxes(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    observed.create()
    observed.ended(observed.run("true"))
    running = observed.run("sleep", "1000")
    starting = observed.create()
    start = gevent.spawn(observed.start, starting, "sleep", "1000", port_expected_count=1)
    until(lambda: observed.manager.record(starting).state is State.PENDING)
    pids = [observed.manager.record(uid).pid or 0 for uid in (running, starting)]
    observed.manager.close(end_jobs=True)
    assert all(gone(pid) for pid in pids)
    assert list(observed.root.iterdir()) == [observed.root / ".agent.lock"]
    last = {record.uid: record for record in observed.records}
    assert {last[running].reason, last[starting].reason} == {Reason.AGENT_LOST}
    start.join(5)
    assert isinstance(start.exception, StartFailed)
    assert "record_not_kept" not in caplog.text


def test_a_lost_keeper_ends_its_jobs_with_a_reason_and_the_agent_goes_on(observed: Observed) -> None:
    uid = observed.run("sleep", "1000")
    pid = observed.manager.record(uid).pid or 0
    assert observed.runner.keeper_pid is not None
    os.kill(observed.runner.keeper_pid, signal.SIGKILL)
    record = observed.ended(uid)
    assert (record.reason, record.exit_code, record.signal) == (Reason.AGENT_LOST, None, None)
    assert gone(pid)
    assert observed.ended(observed.run("true")).exit_code == 0
