"""Only ports on which a job's own processes listen count as the job's; with real processes and sockets."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.errors import StartFailed
from prouter.jobs import State
from prouter.runners.local.listening_sockets import survey
from tests.support.job_manager import SERVER, Managers, Observed, get, python
from tests.support.keeper import until
from tests.support.ports import free_port

PRELUDE = """
import json, os, socket, sys, time, urllib.error, urllib.request
def tell(port):
    where = os.environ["DA__PAGENT__JOB_ENDPOINT"] + "?job_id=" + os.environ["DA__PAGENT__JOB_ID"]
    try:
        with urllib.request.urlopen(where + "&port=%d" % port, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
def listen(host="127.0.0.1", port=0, only=False):
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if only:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, port))
    server.listen()
    return server
def serve(server):
    while True:
        peer, _ = server.accept()
        if peer.recv(65536):
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nmine")
        peer.close()
def note(told):
    with open("told.new", "w") as file:
        json.dump(told, file)
    os.rename("told.new", "told")
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Observed]:
    """A manager in this process, whose own sockets are therefore the agent's."""
    managers = Managers(tmp_path)
    yield managers.open()
    managers.close()


def started(observed: Observed, code: str, *arguments: str, **body: Any) -> tuple[str, dict[str, Any] | None]:
    """Uid and endpoint of a job that reports its port and is RUNNING."""
    uid = observed.create()
    body = {"port_expected_count": 1, **body}
    record = observed.start(uid, sys.executable, "-I", "-c", PRELUDE + code, *arguments, **body)
    assert record.state is State.RUNNING
    return uid, record.endpoint


def test_ports_of_the_agent_and_of_other_jobs_are_refused_and_the_jobs_own_is_taken(observed: Observed) -> None:
    other = observed.start(observed.create(), *python(SERVER, "{port}"), expose={"port": "assign"}).ports[0]
    with socket.create_server(("127.0.0.1", 0)) as control, socket.create_server(("", 0)) as router:
        foreign = [control.getsockname()[1], router.getsockname()[1], other]
        code = """
server = listen()
foreign = json.loads(sys.argv[1]) + [int(os.environ["DA__PAGENT__JOB_ENDPOINT"].split(":")[2].split("/")[0])]
note([[tell(port) for port in foreign], tell(server.getsockname()[1])])
serve(server)
"""
        uid, endpoint = started(observed, code, json.dumps(foreign))
    refused, taken = json.loads(observed.file(uid, "told"))
    assert taken == [200, "OK"]
    assert [status for status, _ in refused] == [400] * 4
    assert all("another program's" in text and "its own processes listen" in text for _, text in refused)
    assert get(endpoint, "/") == (200, "mine")


CHILD = """
server = listen()
if os.fork() == 0:
    serve(server)
server.close()
"""
DAEMON = """
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    server = listen()
    os.write(writing, b"%d" % server.getsockname()[1])
    serve(server)
os.wait()
port = int(os.read(reading, 9))
"""
FORGETFUL = """
port = int(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", sys.argv[2], str(port)], {})
os.wait()
"""


@pytest.mark.parametrize(
    "code", [CHILD.replace("server.close", "port = server.getsockname()[1]; server.close"), DAEMON]
)
def test_a_port_of_a_child_counts_whoever_reports_it(observed: Observed, code: str) -> None:
    uid, endpoint = started(observed, code + "note(tell(port))\ntime.sleep(1000)")
    assert json.loads(observed.file(uid, "told")) == [200, "OK"]
    assert get(endpoint, "/") == (200, "mine")


def test_a_port_of_a_child_that_left_everything_behind_counts(observed: Observed) -> None:
    code = FORGETFUL + "note(tell(port))\ntime.sleep(1000)"
    _, endpoint = started(observed, code, str(free_port()), SERVER)
    assert get(endpoint, "/x") == (200, "/x")


def test_a_job_may_report_before_it_listens(observed: Observed) -> None:
    code = "port = int(sys.argv[1])\nnote(tell(port))\ntime.sleep(0.1)\nserve(listen(port=port))"
    uid, endpoint = started(observed, code, str(free_port()))
    assert json.loads(observed.file(uid, "told")) == [200, "OK"]
    assert get(endpoint, "/") == (200, "mine")


def test_a_port_that_the_job_never_opens_fails_the_start(observed: Observed) -> None:
    port = free_port()
    uid = observed.create()
    code = PRELUDE + f"tell({port})\ntime.sleep(1000)"
    with pytest.raises(StartFailed, match=f"its processes listened on port {port}, which it reported"):
        observed.start(uid, sys.executable, "-I", "-c", code, expose={"timeout": 1})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1"])
def test_a_job_may_listen_on_any_address_that_is_reached_from_here(observed: Observed, host: str) -> None:
    _, endpoint = started(observed, f"server = listen({host!r})\ntell(server.getsockname()[1])\nserve(server)")
    assert get(endpoint, "/") == (200, "mine")


@pytest.mark.parametrize("expose", [{}, {"port": "detect"}])
def test_the_same_port_of_another_address_is_not_the_jobs(observed: Observed, expose: dict[str, Any]) -> None:
    """The agent has 127.0.0.1, the job the same port of ``[::]`` for IPv6 alone."""
    with socket.create_server(("127.0.0.1", 0)) as control:
        port = control.getsockname()[1]
        code = f"""
server = listen("::", {port}, True)
if "DA__PAGENT__JOB_ENDPOINT" in os.environ:
    tell({port})
serve(server)
"""
        _, endpoint = started(observed, code, expose=expose)
    assert endpoint == {"port": port, "host": "::1"}
    assert get(endpoint, "/") == (200, "mine")


def test_repeated_and_late_reports_are_heard_and_change_nothing(observed: Observed) -> None:
    code = """
servers = [listen(), listen()]
first, second = (server.getsockname()[1] for server in servers)
note([tell(first), tell(first), tell(second)])
serve(servers[0])
"""
    uid, endpoint = started(observed, code)
    assert json.loads(observed.file(uid, "told")) == [[200, "OK"]] * 3
    assert observed.manager.record(uid).ports == [endpoint["port"] if endpoint else 0]


def test_an_assigned_port_that_another_program_answers_on_is_no_server(observed: Observed) -> None:
    uid = observed.create()
    code = "import sys, time; open('port', 'w').write(sys.argv[1]); time.sleep(1000)"
    body = {"expose": {"port": "assign", "timeout": 2}}
    start = gevent.spawn(observed.start, uid, *python(code, "{port}"), **body)
    port = int(observed.file(uid, "port"))
    with socket.create_server(("127.0.0.1", port)):
        start.join(10)
    assert isinstance(start.exception, StartFailed)
    assert f"another program listens on port {port}, and only the job's own processes count" in str(start.exception)


def test_a_socket_that_leads_elsewhere_is_no_server(observed: Observed, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(elsewhere)
        other.listen()
        code = "import os, sys, time; os.symlink(sys.argv[1], sys.argv[2]); time.sleep(1000)"
        with pytest.raises(StartFailed, match="a connection on socket"):
            observed.start(
                observed.create(), *python(code, elsewhere, "{socket}"), expose={"port": "unix", "timeout": 0.5}
            )


def test_ports_that_speak_no_http_are_passed_over(observed: Observed) -> None:
    """The lowest port that answers HTTP is detected; the others accept, and are silent or rude."""
    low, web, high = sorted(free_port() for _ in range(3))
    code = f"""
import threading
def rude(server):
    while True:
        peer, _ = server.accept()
        peer.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\n")
        peer.close()
threading.Thread(target=rude, args=(listen(port={low}),), daemon=True).start()
silent = listen(port={high})
serve(listen(port={web}))
"""
    uid, endpoint = started(observed, code, expose={"port": "detect"})
    assert endpoint == {"port": web}
    assert observed.manager.record(uid).ports == [low, web, high]


def test_a_server_without_http_is_told_how_it_is_detected(observed: Observed) -> None:
    code = f"server = listen(port={free_port()})\nwhile True: server.accept()[0].close()"
    with pytest.raises(StartFailed, match=r'an HTTP answer on port .*found with {"ready": "tcp"}'):
        started(observed, code, expose={"port": "detect", "timeout": 1})
    started(observed, code, expose={"port": "detect", "ready": "tcp"})


def test_processes_of_other_users_are_hidden_from_an_ordinary_agent(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to have a process of another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        found = survey([os.getppid()])
        os.write(writing, json.dumps(found.hidden).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 100)) == [os.getpid()]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_port_is_reported_round_a_proxy(tmp_path: Path, name: str) -> None:
    managers = Managers(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", 0)) as proxy:  # Takes connections and never answers.
            environ = {**os.environ, name: f"http://127.0.0.1:{proxy.getsockname()[1]}", "no_proxy": "corp.example"}
            jobs = managers.open(environ=environ)
            _, endpoint = started(jobs, "server = listen()\ntell(server.getsockname()[1])\nserve(server)")
            assert get(endpoint, "/") == (200, "mine")
    finally:
        managers.close()


def test_a_job_without_a_server_is_told_how_to_be_started(observed: Observed) -> None:
    uid = observed.create()
    with pytest.raises(StartFailed) as failed:
        observed.start(uid, *python("print(42)"), port_expected_count=1)
    assert "0 of 1 expected ports reported before its process ended (exit code 0); a job without a server" in str(
        failed.value
    )
    assert "port_expected_count: 0" in str(failed.value)
    assert "expose" in str(failed.value)
    assert str(failed.value).endswith("stdout:\n42")
    broken = observed.create()
    with pytest.raises(StartFailed) as failed:
        observed.start(broken, *python("raise SystemExit(3)"), port_expected_count=1)
    assert "port_expected_count" not in str(failed.value)
    until(lambda: observed.manager.record(broken).ended)
