"""The job manager with real jobs: environment, start, limits, end and removal."""

from __future__ import annotations

import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.agent.archives.packer import pack
from prouter.agent.sandbox.files import list_directory
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.service import Service
from prouter.errors import Conflict, Forbidden, InvalidRequest, LimitReached, NotFound, PRouterError, StartFailed
from prouter.jobs import Reason, State
from prouter.processes import process_tree
from prouter.requests import Limits
from tests.support.job_manager import CONNECTION, SERVER, Managers, Observed, get, gone, new_uid, python
from tests.support.keeper import ESCAPE, until
from tests.support.ports import free_port

NOTIFY_SERVER = Path(__file__).parents[1] / "jobs" / "notify_server.py"
PRINT_ENVIRONMENT = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), __import__('sys').argv[1:]]))"
REPORT = (
    "import os, urllib.request; e = os.environ; urllib.request.urlopen(e['DA__PAGENT__JOB_ENDPOINT'] + '?job_id=' + "
)
REPORT += "e['DA__PAGENT__JOB_ID'] + '&port=%s').read(); "


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Managers]:
    """Managers that follow one another on the same state."""
    managers = Managers(tmp_path)
    yield managers
    managers.close()


@pytest.fixture
def jobs(managers: Managers) -> Observed:
    """One manager."""
    return managers.open()


# A life from creation to removal.


def test_a_job_without_a_port_goes_through_its_states(jobs: Observed) -> None:
    uid = jobs.create("name")
    sandbox = jobs.manager.sandbox(uid).root
    assert sandbox.stat().st_mode & 0o777 == 0o700
    assert jobs.start(uid, "true").state is State.RUNNING
    record = jobs.ended(uid)
    assert (record.reason, record.exit_code, record.signal, record.error) == (Reason.EXITED, 0, None, None)
    assert (record.name, record.connection, record.args, record.pid) == ("name", CONNECTION, ["true"], None)
    assert record.created_at <= (record.started_at or 0) <= (record.finished_at or 0) <= time.time()
    assert jobs.manager.remove(uid) == record
    assert jobs.states(uid) == [State.NEW, State.RUNNING, State.FINISHED, State.CLOSED]
    revisions = [record.revision for record in jobs.records + jobs.removed]
    assert revisions == sorted(set(revisions))
    assert not sandbox.exists()
    assert jobs.manager.records() == []


def test_a_router_that_asks_for_it_gets_the_revision_of_the_newest_record(jobs: Observed) -> None:
    service = Service(jobs.manager, lambda: None)
    uid = new_uid()
    create = {"uid": uid, "connection": CONNECTION, "name": "job"}
    assert service.carry_out("job.create", {**create, "answer": "revision"}) == {"revision": jobs.records[-1].revision}
    assert service.carry_out("job.create", create) == {"record": jobs.records[-1].to_wire()}
    request = {"args": ["sleep", "1000"], "env": {}, "port_expected_count": 0}
    start = {"uid": uid, "request": request, "request_id": "start-1"}
    assert service.carry_out("job.start", {**start, "answer": "revision"}) == {"revision": jobs.records[-1].revision}
    running = jobs.records[-1]
    assert running.state is State.RUNNING
    stop = {"uid": uid, "grace": 0, "answer": "revision"}
    assert service.carry_out("job.stop", stop) == {"revision": jobs.ended(uid).revision}
    again = service.carry_out("job.start", {**start, "answer": "revision"})
    assert again == {"record": running.to_wire()}, "not the newest any more: routers have it no longer"


def test_exit_code_and_signal_are_told(jobs: Observed) -> None:
    assert jobs.ended(jobs.run("sh", "-c", "exit 7")).exit_code == 7
    record = jobs.ended(jobs.run("sh", "-c", "kill -USR1 $$"))
    assert (record.reason, record.exit_code, record.signal) == (Reason.SIGNALED, None, "SIGUSR1")


def test_a_job_is_created_once(jobs: Observed) -> None:
    uid = jobs.create()
    assert jobs.manager.create(uid, CONNECTION, "again") == jobs.manager.record(uid)
    assert jobs.states(uid) == [State.NEW]


@pytest.mark.parametrize("uid", ["", "..", "a/b", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", "../" + "a" * 29])
def test_a_uid_never_leads_elsewhere(jobs: Observed, uid: str) -> None:
    with pytest.raises(InvalidRequest):
        jobs.manager.create(uid, CONNECTION, "job")


def test_unknown_jobs_are_not_found(jobs: Observed) -> None:
    uid = new_uid()
    for call in (
        lambda: jobs.manager.record(uid),
        lambda: jobs.manager.start(uid, {}, "r"),
        lambda: jobs.manager.remove(uid),
        lambda: jobs.manager.stop(uid, 1),
        lambda: jobs.manager.signal(uid, "TERM"),
        lambda: jobs.manager.usage(uid),
        lambda: jobs.manager.sandbox(uid),
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


# What a job sees.


def test_a_job_sees_its_place_the_agents_properties_and_the_requests_variables(managers: Managers) -> None:
    environ = {"PATH": os.environ["PATH"], "FROM_AGENT": "yes", "PROUTER_CLIENT__TOKEN": "secret", "LANG": "C"}
    jobs = managers.open(environ=environ, properties={"gpu": "a100", "zone Ж": "1"})
    uid = jobs.create()
    jobs.start(
        uid, *python(PRINT_ENVIRONMENT, "{port}"), env={"LANG": "xx", "DA__PAGENT__gpu": "none", "B": "{sandbox}"}
    )
    seen, cwd, arguments = jobs.output(uid)
    path = f"/jobs/{CONNECTION}/{uid}"
    sandbox = str(jobs.manager.sandbox(uid).root)
    assert {name: value for name, value in seen.items() if name != "LC_CTYPE"} == {
        "PATH": os.environ["PATH"],
        "FROM_AGENT": "yes",
        "LANG": "xx",
        "DA__PAGENT__gpu": "none",
        "DA__PAGENT__zone Ж": "1",
        "B": "{sandbox}",
        "PROUTER_JOB_ID": uid,
        "PROUTER_JOB_PATH": path,
        "PROUTER_BASE_URL": f"{path}/http/",
        "PROUTER_BASE_PATH": f"{path}/http",
        "PROUTER_SANDBOX": sandbox,
        "PYTHONUNBUFFERED": "1",
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP", "TMUX_TMPDIR"), seen["TMPDIR"]),
    }
    assert (cwd, arguments) == (sandbox, ["{port}"])


def test_not_even_the_request_changes_the_mark_of_a_jobs_processes(jobs: Observed) -> None:
    uid = jobs.run(*python(PRINT_ENVIRONMENT), env={"PROUTER_JOB_ID": new_uid()})
    assert jobs.output(uid)[0]["PROUTER_JOB_ID"] == uid


def test_templates_are_filled_in_with_expose(jobs: Observed) -> None:
    uid = jobs.create()
    code = f"import json, os, sys; open('seen', 'w').write(json.dumps([sys.argv, os.environ['X']]))\n{SERVER}"
    record = jobs.start(uid, *python(code, "{port}", '{"a": {}}'), env={"X": "{base_url}"}, expose={"port": "assign"})
    assert jobs.file(uid, "seen") == f'[["-c", "{record.ports[0]}", "{{\\"a\\": {{}}}}"], "{record.path}/http/"]'
    assert record.args[-2] == str(record.ports[0])


def test_output_goes_to_the_sandbox(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", "echo out; echo err >&2")
    jobs.ended(uid)
    assert jobs.file(uid, ".pagent.stdout") == "out\n"
    assert jobs.file(uid, ".pagent.stderr") == "err\n"
    assert jobs.manager.log(uid, "stdout").read(0).data == b"out\n"


def test_forwarded_output_does_not(jobs: Observed) -> None:
    uid = jobs.run("true", forward_stdout=True)
    jobs.ended(uid)
    assert list(list_directory(jobs.manager.sandbox(uid))) == []


def test_the_working_directory_is_inside_the_sandbox(jobs: Observed) -> None:
    uid = jobs.create()
    (jobs.manager.sandbox(uid).root / "sub" / "dir").mkdir(parents=True)
    jobs.start(uid, *python(PRINT_ENVIRONMENT), cwd="sub/dir")
    assert jobs.output(uid)[1] == str(jobs.manager.sandbox(uid).root / "sub" / "dir")


@pytest.mark.parametrize("cwd", ["missing", "..", "/tmp", "link", "file"])
def test_other_working_directories_are_refused_and_the_job_can_still_be_started(jobs: Observed, cwd: str) -> None:
    uid = jobs.create()
    root = jobs.manager.sandbox(uid).root
    (root / "link").symlink_to("/tmp")
    (root / "file").touch()
    with pytest.raises(InvalidRequest, match="cwd"):
        jobs.start(uid, "true", cwd=cwd)
    assert jobs.manager.record(uid).state is State.NEW
    assert jobs.start(uid, "true").state is State.RUNNING


# Servers.


def test_the_originals_own_kind_of_job_reports_its_port(jobs: Observed) -> None:
    uid = jobs.create()
    record = jobs.start(uid, sys.executable, str(NOTIFY_SERVER), port_expected_count=1)
    assert record.state is State.RUNNING
    assert jobs.manager.record(uid).endpoint == {"port": record.ports[0]}
    assert get(record.endpoint, "/") == (200, "hello from the job\n")
    assert jobs.states(uid) == [State.NEW, State.PENDING, State.RUNNING]


def test_a_start_waits_for_all_ports_and_the_first_is_the_endpoint(jobs: Observed) -> None:
    first, second = free_port(), free_port()
    code = f"import socket; l = [socket.create_server(('127.0.0.1', port)) for port in ({first}, {second})]; "
    code += REPORT % first + REPORT % second + "import time; time.sleep(1000)"
    record = jobs.start(jobs.create(), sys.executable, "-I", "-c", code, port_expected_count=2)
    assert record.ports == [first, second]
    assert record.endpoint == {"port": first}


def test_a_report_for_another_job_is_refused(jobs: Observed) -> None:
    """Also for one that waits for a report."""
    other = jobs.create()
    gevent.spawn(jobs.start, other, *python("import time; time.sleep(1000)"), port_expected_count=1)
    until(lambda: jobs.manager.record(other).state is State.PENDING)
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
    uid = jobs.create()
    jobs.start(uid, sys.executable, "-I", "-c", code, port_expected_count=1)
    told = jobs.file(uid, "told")
    assert told.startswith(f"[(400, b\"this is not the endpoint of job '{other}'")
    assert told.count("call the URL in its DA__PAGENT__JOB_ENDPOINT") == 2
    assert jobs.manager.record(other).state is State.PENDING
    assert told.endswith("b'OK']")


@pytest.mark.parametrize("ready", ["tcp", "http", "/"])
def test_an_assigned_port_is_served(jobs: Observed, ready: str) -> None:
    record = jobs.start(jobs.create(), *python(SERVER, "{port}"), expose={"port": "assign", "ready": ready})
    assert get(record.endpoint, "/x") == (200, "/x")
    assert record.path_mode == "strip"


def test_jobs_get_different_ports(jobs: Observed) -> None:
    expose = {"port": "assign"}
    starts = [gevent.spawn(jobs.start, jobs.create(), *python(SERVER, "{port}"), expose=expose) for _ in range(8)]
    gevent.joinall(starts, raise_error=True)
    assert len({start.value.ports[0] for start in starts if start.value}) == 8


def test_a_unix_socket_is_served_and_gone_with_the_job(jobs: Observed) -> None:
    uid = jobs.create()
    record = jobs.start(uid, *python(SERVER, "{socket}"), expose={"port": "unix", "ready": "http"})
    assert get(record.endpoint, "/x") == (200, "/x")
    jobs.manager.stop(uid, 5)
    assert record.endpoint is not None
    assert not Path(record.endpoint["socket"]).exists()


def test_a_server_is_found_by_its_listening_socket_also_in_a_child_process(jobs: Observed) -> None:
    port = free_port()
    shell = f'"{sys.executable}" -I -S -c "$0" {port}; true'
    record = jobs.start(jobs.create(), "sh", "-c", shell, SERVER, expose={"port": "detect", "ready": "http"})
    assert record.ports == [port]
    assert get(record.endpoint, "/x") == (200, "/x")


@pytest.mark.parametrize(("prefix", "mode"), [("{base_url}", "keep"), ("/other", "strip")])
def test_auto_finds_out_whether_a_server_knows_its_prefix(jobs: Observed, prefix: str, mode: str) -> None:
    expose = {"port": "assign", "path": "auto", "ready": "http"}
    record = jobs.start(jobs.create(), *python(SERVER, "{port}", prefix), expose=expose)
    assert record.path_mode == mode


# Starts that fail, and starts that are repeated.


def test_a_start_that_dies_says_why_with_the_end_of_stderr(jobs: Observed) -> None:
    uid = jobs.create()
    with pytest.raises(StartFailed) as caught:
        jobs.start(uid, "sh", "-c", "seq 10000 >&2; echo the end >&2; exit 3", port_expected_count=1)
    assert "0 of 1 expected ports reported before its process ended (exit code 3)" in caught.value.detail
    assert caught.value.detail.endswith("10000\nthe end")
    assert len(caught.value.detail) < 3000
    record = jobs.manager.record(uid)
    assert (record.state, record.reason, record.exit_code) == (State.FINISHED, Reason.START_FAILED, 3)
    assert record.error == caught.value.detail


def test_a_start_that_takes_too_long_fails_and_leaves_nothing(jobs: Observed) -> None:
    uid = jobs.create()
    with pytest.raises(StartFailed, match=r"not within 0\.3 s: a connection on port"):
        jobs.start(uid, "sh", "-c", "echo $$ > pid; sleep 1000; true", expose={"port": "assign", "timeout": 0.3})
    assert gone(int(jobs.file(uid, "pid")))
    assert jobs.manager.record(uid).reason is Reason.START_FAILED


def test_a_taken_port_is_named_as_the_likely_cause(jobs: Observed) -> None:
    with pytest.raises(StartFailed, match="another program had taken the port"):
        jobs.start(
            jobs.create(), "sh", "-c", "echo OSError: Address already in use >&2; exit 1", expose={"port": "assign"}
        )


@pytest.mark.parametrize(("command", "text"), [("no-such-command", "no-such-command"), ("/etc/passwd", "/etc/passwd")])
def test_a_command_that_cannot_run_says_so(jobs: Observed, command: str, text: str) -> None:
    uid = jobs.create()
    with pytest.raises(StartFailed, match=text):
        jobs.start(uid, command)
    assert jobs.states(uid) == [State.NEW, State.FINISHED]
    assert jobs.manager.record(uid).reason is Reason.START_FAILED


def test_the_same_request_gets_the_same_answer_however_often(jobs: Observed) -> None:
    uid = jobs.create()
    request: dict[str, Any] = {"args": python(SERVER, "{port}"), "env": {}, "expose": {"port": "assign"}}
    starts = [gevent.spawn(jobs.manager.start, uid, request, "r") for _ in range(5)]
    gevent.joinall(starts, raise_error=True)
    assert {start.value.revision for start in starts if start.value} == {jobs.manager.record(uid).revision}
    assert jobs.manager.start(uid, request, "r") == jobs.manager.record(uid)
    with pytest.raises(Conflict, match="started already") as caught:
        jobs.manager.start(uid, request, "another")
    assert caught.value.state == "RUNNING"


def test_a_failed_start_fails_the_same_when_repeated(jobs: Observed) -> None:
    uid = jobs.create()
    request = {"args": ["no-such-command"], "env": {}}
    details = []
    for _ in range(2):
        with pytest.raises(StartFailed) as caught:
            jobs.manager.start(uid, request, "r")
        details.append(caught.value.detail)
    assert details[0] == details[1]
    with pytest.raises(Conflict):
        jobs.manager.start(uid, request, "another")


def test_a_start_goes_on_when_its_caller_is_gone(jobs: Observed) -> None:
    uid = jobs.create()
    request: dict[str, Any] = {"args": python(SERVER, "{port}"), "env": {}, "expose": {"port": "assign"}}
    caller = gevent.spawn(jobs.manager.start, uid, request, "r")
    until(lambda: jobs.manager.record(uid).state is State.PENDING)
    caller.kill()
    assert jobs.manager.start(uid, request, "r").state is State.RUNNING


@pytest.mark.parametrize(
    "body", [{"args": []}, {"more": 1}, {"limits": {"memory": 2**40}}, {"expose": {"preset": "x"}}]
)
def test_a_wrong_request_leaves_the_job_new(managers: Managers, body: dict[str, Any]) -> None:
    jobs = managers.open(ceilings=Limits(memory=2**30))
    uid = jobs.create()
    with pytest.raises(InvalidRequest, match="Invalid request"):
        jobs.manager.start(uid, {"args": ["true"], "env": {}, **body}, "r")
    assert jobs.manager.record(uid).state is State.NEW


# Limits.


def test_a_job_ends_when_its_time_is_up(jobs: Observed) -> None:
    record = jobs.ended(jobs.run("sleep", "1000", limits={"timeout": 0.2}))
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
def test_a_sandbox_over_its_limit_ends_the_job(jobs: Observed, fill: str) -> None:
    uid = jobs.run("sh", "-c", f"{fill}; sleep 1000", limits={"sandbox_size": 1_000_000})
    record = jobs.ended(uid)
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
    jobs: Observed, limits: dict[str, Any], code: str, reason: Reason
) -> None:
    record = jobs.ended(jobs.run(*python(code), limits=limits))
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


def test_stop_ends_the_whole_tree_gracefully(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", "trap 'echo bye > said; exit 5' TERM; sleep 1000 & echo $! > child; wait")
    child = int(jobs.file(uid, "child"))
    record = jobs.manager.stop(uid, 10)
    assert (record.state, record.reason, record.exit_code) == (State.FINISHED, Reason.STOPPED, 5)
    assert jobs.file(uid, "said") == "bye\n"
    assert gone(child)
    assert jobs.manager.stop(uid, 10) == record


PARTING = "trap 'echo bye; exit 7' TERM; echo $$ > ready; while :; do sleep 0.05; done"
"""A shell that ends with status 7 when it is asked to."""


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    process = process_tree.read_process(pid)
    return process is not None and process.state == "T"


def test_a_stopped_job_hears_that_it_is_to_end(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", PARTING)
    pid = int(jobs.file(uid, "ready"))
    jobs.manager.signal(uid, "STOP")
    until(lambda: stopped(pid))
    record = jobs.manager.stop(uid, 30)
    assert (record.reason, record.exit_code, record.signal) == (Reason.STOPPED, 7, None)
    assert jobs.file(uid, ".pagent.stdout") == "bye\n"


def test_a_stopped_child_in_a_session_of_its_own_hears_it_too(jobs: Observed) -> None:
    script = "trap 'wait; exit 3' TERM; setsid sh -c \"$1\" > said & wait; wait"
    uid = jobs.run("sh", "-c", script, "sh", PARTING)
    child = int(jobs.file(uid, "ready"))
    os.kill(child, signal.SIGSTOP)
    until(lambda: stopped(child))
    assert jobs.manager.stop(uid, 30).exit_code == 3
    assert jobs.file(uid, "said") == "bye\n"


def test_a_stopped_job_hears_that_its_time_is_up(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", PARTING, limits={"timeout": 1})
    jobs.file(uid, "ready")
    jobs.manager.signal(uid, "STOP")
    record = jobs.ended(uid, 20)
    assert (record.reason, record.exit_code) == (Reason.TIMEOUT, 7)


def test_stop_kills_what_does_not_end_in_time(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", "trap '' TERM; echo yes > trapped; while :; do sleep 0.1; done")
    jobs.file(uid, "trapped")
    began = time.monotonic()
    record = jobs.manager.stop(uid, 0.3)
    assert time.monotonic() - began >= 0.3
    assert (record.reason, record.signal) == (Reason.STOPPED, "SIGKILL")


def test_stopping_a_job_that_starts_fails_its_start(jobs: Observed) -> None:
    uid = jobs.create()
    start = gevent.spawn(jobs.start, uid, "sleep", "1000", port_expected_count=1)
    until(lambda: jobs.manager.record(uid).state is State.PENDING)
    assert jobs.manager.stop(uid, 5).reason is Reason.STOPPED
    start.join(5)
    assert isinstance(start.exception, StartFailed)


def test_a_job_that_was_not_started_cannot_be_stopped_or_signalled(jobs: Observed) -> None:
    uid = jobs.create()
    with pytest.raises(Conflict, match="it is NEW"):
        jobs.manager.stop(uid, 1)
    with pytest.raises(Conflict, match="it is NEW"):
        jobs.manager.signal(uid, "TERM")


def test_a_signal_reaches_the_first_process(jobs: Observed) -> None:
    uid = jobs.run("sh", "-c", "trap 'exit 9' USR1; echo yes > trapped; while :; do sleep 0.05; done")
    jobs.file(uid, "trapped")
    jobs.manager.signal(uid, "usr1")
    assert jobs.ended(uid).exit_code == 9
    with pytest.raises(Conflict, match="it is FINISHED"):
        jobs.manager.signal(uid, "TERM")
    with pytest.raises(InvalidRequest):
        jobs.manager.signal(uid, "NOPE")


def test_usage_is_that_of_the_tree(jobs: Observed) -> None:
    uid = jobs.run(*python("x = bytearray(40_000_000)\nopen('up', 'w').write('y')\nwhile True: pass"))
    jobs.file(uid, "up")
    until(lambda: (jobs.manager.usage(uid).cpu_seconds or 0) > 0)
    assert (jobs.manager.usage(uid).rss_bytes or 0) > 40_000_000
    assert jobs.manager.record(uid).cpu_seconds is None
    jobs.manager.stop(uid, 1)
    record = jobs.manager.usage(uid)
    assert record == jobs.manager.record(uid)
    assert (record.cpu_seconds or 0) > 0


# Removal.


def test_remove_ends_what_runs_and_leaves_nothing(jobs: Observed) -> None:
    uid = jobs.run(*python(ESCAPE))
    escaped = int(jobs.file(uid, "escaped"))
    record = jobs.manager.record(uid)
    sandbox = jobs.manager.sandbox(uid).root
    assert record.pid is not None
    assert jobs.manager.remove(uid) == record
    assert gone(record.pid)
    assert gone(escaped)
    assert not sandbox.exists()
    assert jobs.states(uid) == [State.NEW, State.RUNNING, State.FINISHED, State.CLOSED]
    assert jobs.removed[-1].reason is Reason.REMOVED


def test_a_repeated_remove_gets_the_same_answer(jobs: Observed) -> None:
    uid = jobs.run("sleep", "1000")
    removes = [gevent.spawn(jobs.manager.remove, uid) for _ in range(3)]
    gevent.joinall(removes, raise_error=True)
    assert {remove.value.state for remove in removes if remove.value} == {State.RUNNING}
    assert jobs.manager.remove(uid).state is State.RUNNING
    assert len(jobs.removed) == 1


def test_a_removed_job_is_not_made_again(jobs: Observed) -> None:
    uid = jobs.create()
    assert jobs.manager.remove(uid).state is State.NEW
    with pytest.raises(NotFound):
        jobs.manager.create(uid, CONNECTION, "job")
    with pytest.raises(NotFound):
        jobs.start(uid, "true")


def test_removing_a_job_that_starts_fails_its_start(jobs: Observed) -> None:
    uid = jobs.create()
    start = gevent.spawn(jobs.start, uid, "sleep", "1000", port_expected_count=1)
    until(lambda: jobs.manager.record(uid).state is State.PENDING)
    assert jobs.manager.remove(uid).state is State.PENDING
    start.join(5)
    assert isinstance(start.exception, StartFailed)
    assert jobs.removed[-1].reason is Reason.REMOVED


def test_removing_a_job_while_it_is_spawned_leaves_nothing(jobs: Observed) -> None:
    uids = [jobs.create() for _ in range(10)]
    starts = [gevent.spawn(jobs.start, uid, "sleep", "1000") for uid in uids]
    removes = [gevent.spawn(jobs.manager.remove, uid) for uid in uids]
    gevent.joinall(removes, timeout=10, raise_error=True)
    gevent.joinall(starts, timeout=10)
    assert list(jobs.root.iterdir()) == [jobs.root / ".agent.lock"]
    assert all(isinstance(start.exception, PRouterError) for start in starts)
    assert {record.pid for record in jobs.removed} == {None}


def test_all_can_be_removed_at_once(jobs: Observed) -> None:
    jobs.create()
    jobs.run("sleep", "1000")
    jobs.ended(jobs.run("true"))
    jobs.manager.remove_all(Reason.AGENT_LOST)
    assert jobs.manager.records() == []
    assert [record.reason for record in jobs.removed].count(Reason.AGENT_LOST) == 1
    assert list(jobs.root.iterdir()) == [jobs.root / ".agent.lock"]


# The root, and the end of the agent.


def test_two_agents_do_not_share_a_root(jobs: Observed, tmp_path: Path) -> None:
    other = Observed(tmp_path / "other")
    other.manager._root = type(other.manager._root)(jobs.root)
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


def test_closing_ends_all_jobs_and_removes_all_sandboxes(jobs: Observed, caplog: pytest.LogCaptureFixture) -> None:
    jobs.create()
    jobs.ended(jobs.run("true"))
    running = jobs.run("sleep", "1000")
    starting = jobs.create()
    start = gevent.spawn(jobs.start, starting, "sleep", "1000", port_expected_count=1)
    until(lambda: jobs.manager.record(starting).state is State.PENDING)
    pids = [jobs.manager.record(uid).pid or 0 for uid in (running, starting)]
    jobs.manager.close(end_jobs=True)
    assert all(gone(pid) for pid in pids)
    assert list(jobs.root.iterdir()) == [jobs.root / ".agent.lock"]
    last = {record.uid: record for record in jobs.records}
    assert {last[running].reason, last[starting].reason} == {Reason.AGENT_LOST}
    start.join(5)
    assert isinstance(start.exception, StartFailed)
    assert "record_not_kept" not in caplog.text


def test_a_lost_keeper_ends_its_jobs_with_a_reason_and_the_agent_goes_on(jobs: Observed) -> None:
    uid = jobs.run("sleep", "1000")
    pid = jobs.manager.record(uid).pid or 0
    assert jobs.runner.keeper_pid is not None
    os.kill(jobs.runner.keeper_pid, signal.SIGKILL)
    record = jobs.ended(uid)
    assert (record.reason, record.exit_code, record.signal) == (Reason.AGENT_LOST, None, None)
    assert gone(pid)
    assert jobs.ended(jobs.run("true")).exit_code == 0


# Temporary files and HOME.


TEMPORARY = """
import json, os, stat, sys, tempfile
from multiprocessing.connection import Listener
with tempfile.NamedTemporaryFile(delete=False) as file:
    file.write(b"x" * 100000)
with Listener(family="AF_UNIX") as listener:
    socket = listener.address
seen = {name: os.environ[name] for name in ("TMPDIR", "TMP", "TEMP", "TMUX_TMPDIR")}
print(json.dumps([os.path.realpath(file.name), socket, seen, stat.S_IMODE(os.stat(os.environ["TMPDIR"]).st_mode)]))
"""


def packed(sandbox: Sandbox, path: bytes = b"") -> list[str]:
    """The names in an archive."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(sandbox, path)))) as archive:
        return archive.getnames()


@pytest.mark.parametrize("deep", [0, 60])
def test_temporary_files_are_in_the_sandbox_and_sockets_fit_however_long_its_path_is(tmp_path: Path, deep: int) -> None:
    managers = Managers(tmp_path / ("d" * deep))
    (tmp_path / ("d" * deep)).mkdir(exist_ok=True)
    try:
        jobs = managers.open()
        uid = jobs.run(sys.executable, "-I", "-c", TEMPORARY)
        file, socket, seen, mode = jobs.output(uid)
        root = jobs.manager.sandbox(uid).root
        assert Path(file).parent == root / ".pagent.tmp"
        assert len(set(seen.values())) == 1
        assert socket.startswith(seen["TMPDIR"])
        assert mode == 0o700
        assert jobs.manager.sandbox(uid).size_bytes() >= 100000
        assert not os.path.islink(seen["TMPDIR"])  # A short link ends with the job.
        assert [entry.name for entry in list_directory(jobs.manager.sandbox(uid))] == [
            ".pagent.stderr",
            ".pagent.stdout",
        ]
        assert [entry.name for entry in list_directory(jobs.manager.sandbox(uid), b".pagent.tmp")] == [Path(file).name]
        assert packed(jobs.manager.sandbox(uid)) == [".pagent.stderr", ".pagent.stdout"]
        assert packed(jobs.manager.sandbox(uid), b".pagent.tmp") == [Path(file).name]
        jobs.manager.remove(uid)
        assert not os.path.exists(file)
    finally:
        managers.close()


def test_a_file_in_the_way_of_temporary_files_fails_the_start(jobs: Observed) -> None:
    uid = jobs.create()
    (jobs.manager.sandbox(uid).root / ".pagent.tmp").write_text("mine")
    with pytest.raises(StartFailed, match=r"'\.pagent\.tmp': File exists"):
        jobs.start(uid, "true")


def test_the_request_may_put_temporary_files_elsewhere(jobs: Observed) -> None:
    uid = jobs.run(*python(PRINT_ENVIRONMENT), env={"TMPDIR": "/var/tmp"})
    assert jobs.output(uid)[0]["TMPDIR"] == "/var/tmp"


@pytest.mark.parametrize(
    ("configured", "asked", "inside"),
    [("agent", None, False), ("sandbox", None, True), ("agent", "sandbox", True), ("sandbox", "agent", False)],
)
def test_home_is_the_agents_or_the_sandbox(
    managers: Managers, configured: str, asked: str | None, inside: bool
) -> None:
    environ = {"HOME": "/home/agent", "XDG_CACHE_HOME": "/home/agent/cache", "XDG_RUNTIME_DIR": "/run/user/1"}
    jobs = managers.open(environ=environ, home=configured)
    uid = jobs.run(*python(PRINT_ENVIRONMENT), home=asked)
    seen = jobs.output(uid)[0]
    assert seen["HOME"] == (str(jobs.manager.sandbox(uid).root) if inside else "/home/agent")
    assert ("XDG_CACHE_HOME" in seen) is not inside
    assert seen["XDG_RUNTIME_DIR"] == "/run/user/1"
