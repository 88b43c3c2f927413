"""Jobs that outlive their agent: the next agent takes them over, or the keeper ends them and cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.agent.expose.ports import take
from prouter.errors import StartFailed
from prouter.jobs import Reason, State
from tests.support.job_manager import SERVER, Managers, Observed, get, gone, python
from tests.support.keeper import alive, until
from tests.support.ports import free_port

AGENT = """
import json, sys
from pathlib import Path
import gevent
from tests.support.job_manager import Observed, python
jobs = Observed(Path(sys.argv[1]), keep_for=float(sys.argv[2]))
jobs.manager.open()
new, running, ended = jobs.create(), jobs.run("sleep", "1000"), jobs.run("true")
jobs.ended(ended)
pids = [jobs.manager.record(running).pid, jobs.runner.keeper_pid]
print(json.dumps({"incarnation": jobs.manager.incarnation, "uids": [new, running, ended], "pids": pids}), flush=True)
gevent.sleep(1000)
"""


def restarted(managers: Managers) -> Observed:
    """The next agent, after the last one went away and left its jobs running."""
    managers.all[-1].manager.close(end_jobs=False)
    return managers.open(keep_for=60)


def test_jobs_in_every_state_are_found_again(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    new = before.create("new")
    running = before.run("sleep", "1000")
    ended = before.run("sh", "-c", "exit 4")
    before.ended(ended)
    stopped = before.run("sleep", "1000")
    before.manager.stop(stopped, 5)
    failed = before.create()
    with pytest.raises(StartFailed) as caught:
        before.manager.start(failed, {"args": ["sh", "-c", "exit 1"], "env": {}}, "r")
    records = {record.uid: record for record in before.manager.records()}
    incarnation = before.manager.incarnation

    after = restarted(managers)
    assert after.manager.incarnation == incarnation
    found = {record.uid: record for record in after.manager.records()}
    assert found.keys() == records.keys() == {new, running, ended, stopped, failed}
    for uid, record in found.items():
        old = records[uid]
        assert record.revision > old.revision
        for name in (
            "path",
            "name",
            "state",
            "args",
            "pid",
            "exit_code",
            "reason",
            "error",
            "created_at",
            "finished_at",
        ):
            assert getattr(record, name) == getattr(old, name), f"{name} of {old}"
    with pytest.raises(StartFailed) as again:
        after.manager.start(failed, {"args": ["sh", "-c", "exit 1"], "env": {}}, "r")
    assert again.value.detail == caught.value.detail
    assert after.start(new, "true").state is State.RUNNING
    assert after.manager.stop(running, 5).reason is Reason.STOPPED


def test_the_exit_status_of_a_job_that_ended_meanwhile_is_found(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    uid = before.run("sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; echo $$ > ended; exit 6")
    pid = before.manager.record(uid).pid or 0
    before.manager.close(end_jobs=False)
    (before.root / uid / "go").touch()
    until(lambda: gone(pid))
    after = managers.open(keep_for=60)
    record = after.ended(uid)
    assert (record.reason, record.exit_code) == (Reason.EXITED, 6)
    assert after.manager.remove(uid).exit_code == 6
    assert not (after.root / uid).exists()


def test_a_server_goes_on_serving_on_its_reserved_port(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    uid = before.create()
    record = before.start(uid, *python(SERVER, "{port}"), expose={"port": "assign"})
    after = restarted(managers)
    assert after.manager.record(uid).endpoint == record.endpoint
    assert get(after.manager.record(uid).endpoint, "/x") == (200, "/x")
    assert take(record.ports[0]) is None
    after.manager.remove(uid)
    port = take(record.ports[0])
    assert port is not None
    port.release()


def test_a_start_under_way_goes_on_and_answers_the_same_request(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    uid = before.create()
    code = """
import os, socket, sys, time, urllib.request
def tell(port):
    where = os.environ['DA__PAGENT__JOB_ENDPOINT'] + '?job_id=' + os.environ['DA__PAGENT__JOB_ID']
    return urllib.request.urlopen(where + '&port=' + port).read()
servers = [socket.create_server(('127.0.0.1', int(port))) for port in sys.argv[1:]]
tell(sys.argv[1])
open('first', 'w').write('told')
while not os.path.exists('go'): time.sleep(0.01)
tell(sys.argv[2])
time.sleep(1000)"""
    ports = [free_port(), free_port()]
    args = [sys.executable, "-I", "-c", code, *map(str, ports)]
    request: dict[str, Any] = {"args": args, "env": {}, "port_expected_count": 2}
    gevent.spawn(before.manager.start, uid, request, "r")
    before.file(uid, "first")
    after = restarted(managers)
    assert after.manager.record(uid).state is State.PENDING
    (after.root / uid / "go").touch()
    with gevent.Timeout(10):
        assert after.manager.start(uid, request, "r").ports == ports
    assert after.states(uid) == [State.RUNNING]


def test_a_time_limit_counts_from_the_start_of_the_job(managers: Managers) -> None:
    before = managers.open(keep_for=60)
    uid = before.run("sleep", "1000", limits={"timeout": 1.0})
    started = before.manager.record(uid).started_at or 0
    record = restarted(managers).ended(uid)
    assert record.reason is Reason.TIMEOUT
    assert 1.0 <= (record.finished_at or 0) - started < 3.0


def agent(directory: Path, keep_for: float) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """An agent in a process of its own, and what it says of its jobs."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(directory), str(keep_for)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def test_a_killed_agent_leaves_nothing(tmp_path: Path) -> None:
    process, told = agent(tmp_path, 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(alive(pid) for pid in told["pids"]))
    assert [entry.name for entry in (tmp_path / "jobs").iterdir()] == [".agent.lock"]


def test_a_killed_agents_jobs_are_found_by_the_next(tmp_path: Path, managers: Managers) -> None:
    process, told = agent(tmp_path, 60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    after = managers.open(keep_for=60)
    assert after.manager.incarnation == told["incarnation"]
    states = {record.uid: record.state for record in after.manager.records()}
    assert [states[uid] for uid in told["uids"]] == [State.NEW, State.RUNNING, State.FINISHED]
    assert after.manager.record(told["uids"][1]).pid == told["pids"][0]


def test_a_killed_agent_that_does_not_come_back_in_time_leaves_nothing(tmp_path: Path, managers: Managers) -> None:
    process, told = agent(tmp_path, 0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(alive(pid) for pid in told["pids"]))
    assert [entry.name for entry in (tmp_path / "jobs").iterdir()] == [".agent.lock"]
    after = managers.open()
    assert after.manager.records() == []
    assert after.manager.incarnation != told["incarnation"]


def test_the_short_link_to_temporary_files_outlives_the_agent_and_ends_with_the_job(tmp_path: Path) -> None:
    managers = Managers(tmp_path / ("d" * 60))
    (tmp_path / ("d" * 60)).mkdir()
    try:
        before = managers.open(keep_for=60)
        code = "import os, time; open('tmpdir', 'w').write(os.environ['TMPDIR'])\n"
        uid = before.run(*python(code + "while not os.path.exists('go'): time.sleep(0.01)"))
        link = Path(before.file(uid, "tmpdir"))
        after = restarted(managers)
        assert link.is_symlink()
        assert link.resolve() == after.root / uid / ".pagent.tmp"
        (after.root / uid / "go").touch()
        after.ended(uid)
        assert not link.is_symlink()
    finally:
        managers.close()
