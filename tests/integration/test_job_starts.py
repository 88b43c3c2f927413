"""Starts of the job manager's jobs: servers that are waited for, starts that fail, and starts that are repeated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.errors import Conflict, InvalidRequest, StartFailed
from prouter.jobs import Reason, State
from prouter.requests import Limits
from tests.support.job_manager import SERVER, Managers, Observed, get, gone, new_uid, python
from tests.support.keeper import until
from tests.support.ports import free_port

NOTIFY_SERVER = Path(__file__).parents[1] / "jobs" / "notify_server.py"
REPORT = (
    "import os, urllib.request; e = os.environ; urllib.request.urlopen(e['DA__PAGENT__JOB_ENDPOINT'] + '?job_id=' + "
)
REPORT += "e['DA__PAGENT__JOB_ID'] + '&port=%s').read(); "


def test_the_originals_own_kind_of_job_reports_its_port(observed: Observed) -> None:
    uid = observed.create()
    record = observed.start(uid, sys.executable, str(NOTIFY_SERVER), port_expected_count=1)
    assert record.state is State.RUNNING
    assert observed.manager.record(uid).endpoint == {"port": record.ports[0]}
    assert get(record.endpoint, "/") == (200, "hello from the job\n")
    assert observed.states(uid) == [State.NEW, State.PENDING, State.RUNNING]


def test_a_start_waits_for_all_ports_and_the_first_is_the_endpoint(observed: Observed) -> None:
    first, second = free_port(), free_port()
    code = f"import socket; l = [socket.create_server(('127.0.0.1', port)) for port in ({first}, {second})]; "
    code += REPORT % first + REPORT % second + "import time; time.sleep(1000)"
    record = observed.start(observed.create(), sys.executable, "-I", "-c", code, port_expected_count=2)
    assert record.ports == [first, second]
    assert record.endpoint == {"port": first}


def test_a_report_for_another_job_is_refused(observed: Observed) -> None:
    """Also for one that waits for a report."""
    other = observed.create()
    gevent.spawn(observed.start, other, *python("import time; time.sleep(1000)"), port_expected_count=1)
    until(lambda: observed.manager.record(other).state is State.PENDING)
    code = f"""
import os, urllib.request, urllib.error
def tell(uid, port):
    where = os.environ['DA__PAGENT__JOB_ENDPOINT'] + '?job_id=' + uid
    try:
        return urllib.request.urlopen(where + '&port=' + port).read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
import socket
l = socket.create_server(('127.0.0.1', 0)); port = str(l.getsockname()[1])
mine = os.environ['PROUTER_JOB_ID']
open('told', 'w').write(repr([tell('{other}', '1'), tell('{new_uid()}', '1'), tell(mine, port)]))
__import__('time').sleep(1000)"""
    uid = observed.create()
    observed.start(uid, sys.executable, "-I", "-c", code, port_expected_count=1)
    told = observed.file(uid, "told")
    assert told.startswith(f"[(400, b\"this is not the endpoint of job '{other}'")
    assert told.count("call the URL in its DA__PAGENT__JOB_ENDPOINT") == 2
    assert observed.manager.record(other).state is State.PENDING
    assert told.endswith("b'OK']")


@pytest.mark.parametrize("ready", ["tcp", "http", "/"])
def test_an_assigned_port_is_served(observed: Observed, ready: str) -> None:
    record = observed.start(observed.create(), *python(SERVER, "{port}"), expose={"port": "assign", "ready": ready})
    assert get(record.endpoint, "/x") == (200, "/x")
    assert record.path_mode == "strip"


def test_jobs_get_different_ports(observed: Observed) -> None:
    expose = {"port": "assign"}
    starts = [
        gevent.spawn(observed.start, observed.create(), *python(SERVER, "{port}"), expose=expose) for _ in range(8)
    ]
    gevent.joinall(starts, raise_error=True)
    assert len({start.value.ports[0] for start in starts if start.value}) == 8


def test_a_unix_socket_is_served_and_gone_with_the_job(observed: Observed) -> None:
    uid = observed.create()
    record = observed.start(uid, *python(SERVER, "{socket}"), expose={"port": "unix", "ready": "http"})
    assert get(record.endpoint, "/x") == (200, "/x")
    observed.manager.stop(uid, 5)
    assert record.endpoint is not None
    assert not Path(record.endpoint["socket"]).exists()


def test_a_server_is_found_by_its_listening_socket_also_in_a_child_process(observed: Observed) -> None:
    port = free_port()
    shell = f'"{sys.executable}" -I -S -c "$0" {port}; true'
    record = observed.start(observed.create(), "sh", "-c", shell, SERVER, expose={"port": "detect", "ready": "http"})
    assert record.ports == [port]
    assert get(record.endpoint, "/x") == (200, "/x")


@pytest.mark.parametrize(("prefix", "mode"), [("{base_url}", "keep"), ("/other", "strip")])
def test_auto_finds_out_whether_a_server_knows_its_prefix(observed: Observed, prefix: str, mode: str) -> None:
    expose = {"port": "assign", "path": "auto", "ready": "http"}
    record = observed.start(observed.create(), *python(SERVER, "{port}", prefix), expose=expose)
    assert record.path_mode == mode


# Starts that fail, and starts that are repeated.


def test_a_start_that_dies_says_why_with_the_end_of_stderr(observed: Observed) -> None:
    uid = observed.create()
    with pytest.raises(StartFailed) as caught:
        observed.start(uid, "sh", "-c", "seq 10000 >&2; echo the end >&2; exit 3", port_expected_count=1)
    assert "0 of 1 expected ports reported before its process ended (exit code 3)" in caught.value.detail
    assert caught.value.detail.endswith("10000\nthe end")
    assert len(caught.value.detail) < 3000
    record = observed.manager.record(uid)
    assert (record.state, record.reason, record.exit_code) == (State.FINISHED, Reason.START_FAILED, 3)
    assert record.error == caught.value.detail


def test_a_start_that_takes_too_long_fails_and_leaves_nothing(observed: Observed) -> None:
    uid = observed.create()
    with pytest.raises(StartFailed, match=r"not within 0\.3 s: a connection on port"):
        observed.start(uid, "sh", "-c", "echo $$ > pid; sleep 1000; true", expose={"port": "assign", "timeout": 0.3})
    assert gone(int(observed.file(uid, "pid")))
    assert observed.manager.record(uid).reason is Reason.START_FAILED


def test_a_taken_port_is_named_as_the_likely_cause(observed: Observed) -> None:
    with pytest.raises(StartFailed, match="another program had taken the port"):
        observed.start(
            observed.create(), "sh", "-c", "echo OSError: Address already in use >&2; exit 1", expose={"port": "assign"}
        )


@pytest.mark.parametrize(("command", "text"), [("no-such-command", "no-such-command"), ("/etc/passwd", "/etc/passwd")])
def test_a_command_that_cannot_run_says_so(observed: Observed, command: str, text: str) -> None:
    uid = observed.create()
    with pytest.raises(StartFailed, match=text):
        observed.start(uid, command)
    assert observed.states(uid) == [State.NEW, State.FINISHED]
    assert observed.manager.record(uid).reason is Reason.START_FAILED


def test_the_same_request_gets_the_same_answer_however_often(observed: Observed) -> None:
    uid = observed.create()
    request: dict[str, Any] = {"args": python(SERVER, "{port}"), "env": {}, "expose": {"port": "assign"}}
    starts = [gevent.spawn(observed.manager.start, uid, request, "r") for _ in range(5)]
    gevent.joinall(starts, raise_error=True)
    assert {start.value.revision for start in starts if start.value} == {observed.manager.record(uid).revision}
    assert observed.manager.start(uid, request, "r") == observed.manager.record(uid)
    with pytest.raises(Conflict, match="started already") as caught:
        observed.manager.start(uid, request, "another")
    assert caught.value.state == "RUNNING"


def test_a_failed_start_fails_the_same_when_repeated(observed: Observed) -> None:
    uid = observed.create()
    request = {"args": ["no-such-command"], "env": {}}
    details = []
    for _ in range(2):
        with pytest.raises(StartFailed) as caught:
            observed.manager.start(uid, request, "r")
        details.append(caught.value.detail)
    assert details[0] == details[1]
    with pytest.raises(Conflict):
        observed.manager.start(uid, request, "another")


def test_a_start_goes_on_when_its_caller_is_gone(observed: Observed) -> None:
    uid = observed.create()
    request: dict[str, Any] = {"args": python(SERVER, "{port}"), "env": {}, "expose": {"port": "assign"}}
    caller = gevent.spawn(observed.manager.start, uid, request, "r")
    until(lambda: observed.manager.record(uid).state is State.PENDING)
    caller.kill()
    assert observed.manager.start(uid, request, "r").state is State.RUNNING


@pytest.mark.parametrize(
    "body", [{"args": []}, {"more": 1}, {"limits": {"memory": 2**40}}, {"expose": {"preset": "x"}}]
)
def test_a_wrong_request_leaves_the_job_new(managers: Managers, body: dict[str, Any]) -> None:
    jobs = managers.open(ceilings=Limits(memory=2**30))
    uid = jobs.create()
    with pytest.raises(InvalidRequest, match="Invalid request"):
        jobs.manager.start(uid, {"args": ["true"], "env": {}, **body}, "r")
    assert jobs.manager.record(uid).state is State.NEW
