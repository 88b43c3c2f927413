"""Behaviour of the original, line by line: docs/compatibility.md names these tests.

Ideas of the original's own test suite are among them: names with spaces and letters of other alphabets, batch scripts,
archives with masks, uploads and queries through the proxy, WebSockets that either side ends.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import Agent, Process, Router, start_agent, start_router, wait_until

BINARY = {"Content-Type": "application/octet-stream"}
NAMES = {
    "ASCII FOREVER 1": "ASCII FOREVER",
    "ASCII FOREVER 2": "ЮНИКОД großer",
    "ЮНИКОД èüîû 1 god why": "ASCII FOREVER",
    "ЮНИКОД èüîû 2 god why": "ЮНИКОД großer èüîû god why",
    "lower": "case",
    "Mixed.Case-1": "x=y",
}
DUMP = "import json, os; json.dump(dict(os.environ), open('env.json', 'w'))"


@pytest.fixture
def job(router: Router, agent: Agent) -> Iterator[str]:
    """A new job's path."""
    path = router.create(agent.uid)
    yield path
    router.post(path + "/remove")


@pytest.fixture(scope="module")
def server(router: Router, agent: Agent) -> Iterator[str]:
    """The path of a job that reports its port."""
    path = router.create(agent.uid)
    router.start(path, [sys.executable, str(Path(__file__).parents[1] / "jobs" / "notify_server.py")])
    yield path
    router.post(path + "/remove")


# The API: one row per request that the original answers in its own way.

ROWS: list[tuple[str, str, str, Any, int, str]] = [
    ("an empty name is the original's default", "POST", "/jobs/create", {"name": ""}, 200, '"name":"<unnamed job>"'),
    ("keys that are not known", "POST", "/jobs/create", {"name": "x", "more": 1}, 400, "Invalid request"),
    ("a wrong key in agent", "POST", "/jobs/create", {"name": "x", "agent": {"wrong": "x"}}, 400, "Invalid request"),
    ("a name is required", "POST", "/jobs/create", {}, 400, "Invalid request"),
    ("no JSON", "POST", "/jobs/create", b"{", 400, "Invalid request"),
    ("an unknown agent", "POST", "/jobs/create", {"name": "x", "agent": {"type": "uid", "uid": "no one"}}, 404,
     "no connected agent with uid 'no one'"),
    ("args are required", "POST", "JOB/start", {"env": {}}, 400, "Invalid request"),
    ("env is required", "POST", "JOB/start", {"args": ["true"]}, 400, "Invalid request"),
    ("an empty command", "POST", "JOB/start", {"args": [], "env": {}}, 400, "Invalid request"),
    ("no number in env", "POST", "JOB/start", {"args": ["true"], "env": {"A": 1}}, 400, "Invalid request"),
    ("a negative count of ports", "POST", "JOB/start", {"args": ["x"], "env": {}, "port_expected_count": -1}, 400,
     "Invalid request"),
    ("an absolute cwd", "POST", "JOB/start", {"args": ["x"], "env": {}, "cwd": "/tmp"}, 400, "absolute"),
    ("a cwd that is not there", "POST", "JOB/start", {"args": ["x"], "env": {}, "cwd": "no"}, 400, "cwd"),
    ("a job that was not started is waited for at once", "POST", "JOB/wait", None, 200, '"state":"NEW"'),
    ("info by POST, as the older client asks", "POST", "JOB/info", None, 200, '"state":"NEW"'),
    ("a slash at the end", "GET", "JOB/info/", None, 200, '"state":"NEW"'),
    ("a job of no connection", "GET", "/jobs/no/no/info", None, 404, "connection 'no' is not found"),
    ("no job of a connection", "GET", "CONNECTION/no/info", None, 404, "job 'no' is not found"),
    ("a file that is not there", "GET", "JOB/file/no", None, 404, "'no'"),
    ("a file outside", "GET", "JOB/file/..%2f..%2fetc/passwd", None, 403, "not allowed"),
    ("an archive of an empty sandbox", "GET", "JOB/archive", None, 200, ""),
    ("what is no archive", "POST", "JOB/archive", b"no archive", 400, ""),
    ("a bridge of a job that does not run", "POST", "JOB/wsconnect/x", {"url": "ws://127.0.0.1:1/"}, 409, ""),
    ("a bridge to nothing", "POST", "JOB/wsconnect/x", {"address": "ws://127.0.0.1:1/"}, 400, "Invalid request"),
    ("no such page", "GET", "/nothing", None, 404, ""),
    ("a wrong method", "GET", "/shutdown", None, 405, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "holds"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_requests_are_answered_as_the_contract_says(
    router: Router, agent: Agent, job: str, method: str, path: str, body: Any, status: int, holds: str
) -> None:
    if isinstance(body, dict) and path == "/jobs/create" and "name" in body:
        body = {"agent": {"type": "uid", "uid": agent.uid}, **body}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    url = router.url + path.replace("JOB", job).replace("CONNECTION", job.rpartition("/")[0])
    answer = requests.request(method, url, data=data, headers={"Accept": "*/*"}, timeout=60)
    assert (answer.status_code, holds in answer.text) == (status, True), answer.text
    assert answer.headers["Cache-Control"] == "no-store, must-revalidate"
    assert answer.headers["Expires"] == "0"


def test_a_job_starts_once_and_says_so_after_that(router: Router, job: str) -> None:
    body = {"args": ["true"], "env": {}, "port_expected_count": 0, "name": "accepted", "cwd": None}
    assert router.post(job + "/start", body).status_code == 200
    again = router.post(job + "/start", body)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert router.post(job + "/wait").json()["state"] == "FINISHED"


@pytest.mark.parametrize("start", [{"cwd": "/tmp"}, {"expose": {"preset": "jupyterlab", "path": "strip"}}])
def test_a_run_that_is_refused_leaves_no_job(router: Router, agent: Agent, start: dict[str, Any]) -> None:
    body = {"name": uuid.uuid4().hex, "args": ["true"], "agent": {"type": "uid", "uid": agent.uid}, **start}
    refused = router.post("/jobs/run", body)
    assert (refused.status_code, "Invalid request" in refused.text) == (400, True)
    left = router.get("/jobs", params={"name": body["name"]}).json()["jobs"]
    assert {job["state"] for job in left} <= {"CLOSED"}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    with ThreadPoolExecutor(6) as pool:  # Also of those that are sent at the same time.
        answers = list(pool.map(lambda _: router.post("/jobs/run", body, headers=key), range(6)))
    answers.append(router.post("/jobs/run", body, headers=key))
    assert {answer.json()["detail"] for answer in answers} == {refused.json()["detail"]}
    left = router.get("/jobs", params={"name": body["name"]}).json()["jobs"]
    assert {job["state"] for job in left} <= {"CLOSED"}
    sound = {name: value for name, value in body.items() if name not in start} | {"port_expected_count": 0}
    ran = [router.post("/jobs/run", sound, headers=key).json()["path"] for _ in range(2)]
    assert ran[0] == ran[1]
    router.post(ran[0] + "/remove")


def test_a_script_that_is_uploaded_runs_and_its_output_is_exact(router: Router, job: str) -> None:
    script = b"import sys; print('it seems to work', end=''); sys.exit(3)"
    answer = router.post(job + "/file/deep/run.py", data=script, headers=BINARY)
    assert (answer.status_code, answer.content) == (200, b"")
    router.start(job, [sys.executable, "deep/run.py"], port_expected_count=0)
    assert router.post(job + "/wait").json()["state"] == "FINISHED"
    assert router.get(job + "/file/.pagent.stdout").content == b"it seems to work"
    assert router.get(job + "/file/.pagent.stderr").content == b""


# What a job sees.


@pytest.fixture
def named(launch: Callable[..., Any]) -> tuple[Router, Agent]:
    """A router and an agent with the properties `NAMES`."""
    router = launch(start_router, workers=1)
    return router, launch(start_agent, router, properties=NAMES)


def environment(router: Router, agent: Agent, env: dict[str, str]) -> dict[str, str]:
    path = router.create(agent.uid)
    router.start(path, [sys.executable, "-c", DUMP], env=env, port_expected_count=0)
    router.post(path + "/wait")
    seen: dict[str, str] = router.get(path + "/file/env.json").json()
    router.post(path + "/remove")
    return seen


def test_names_of_properties_and_variables_reach_jobs_unchanged(named: tuple[Router, Agent]) -> None:
    router, agent = named
    seen = environment(router, agent, NAMES)
    prefix = "DA__PAGENT__"
    assert {name.removeprefix(prefix): value for name, value in seen.items() if name.startswith(prefix)} == NAMES
    assert {name: seen[name] for name in NAMES} == NAMES
    told = router.get("/connections").json()["connections"][0]["peer"]["properties"]
    assert told == NAMES


def test_the_request_wins_over_properties_and_the_agents_variables(router: Router, agent: Agent) -> None:
    asked = {"PATH": "/nowhere:/usr/bin:/bin", "DA__PAGENT__x": "mine", "DA__PAGENT__JOB_ID": "mine", "EMPTY": ""}
    seen = environment(router, agent, asked)
    assert {name: seen[name] for name in asked} == asked


def test_a_job_that_reports_no_port_is_not_told_where(router: Router, agent: Agent) -> None:
    assert not any(name.startswith("DA__PAGENT__JOB") for name in environment(router, agent, {}))


def test_stdin_is_empty_and_the_job_leads_a_session_of_its_own(router: Router, job: str) -> None:
    script = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    router.start(job, [sys.executable, "-c", script], port_expected_count=0)
    router.post(job + "/wait")
    assert router.get(job + "/file/.pagent.stdout").text == "'' True\n"


def test_a_removed_job_leaves_no_file(router: Router, agent: Agent) -> None:
    path = router.create(agent.uid)
    sandbox = agent.directory / "jobs" / path.rpartition("/")[2]
    router.post(path + "/file/x", data=b"x", headers=BINARY)
    assert (sandbox / "x").read_bytes() == b"x"
    assert router.post(path + "/remove").json()["state"] == "NEW"
    assert not sandbox.exists()


# The proxy.


def test_answers_of_a_job_pass_with_their_status_and_headers(router: Router, server: str) -> None:
    hello = router.get(server + "/http/")
    assert (hello.status_code, hello.text) == (200, "hello from the job\n")
    assert {"Content-Type", "Content-Length", "Date", "Server"} <= set(hello.headers)
    assert (router.get(server + "/http/no_such_path").status_code, router.get(server + "/http").status_code) == (
        404,
        200,
    )
    assert router.get(server + "/http/", headers={"Range": "bytes=0-1"}).text == hello.text


def test_a_large_upload_reaches_the_job_whole_and_chunked(router: Router, agent: Agent, jobs: Path) -> None:
    path = router.serve(agent.uid, jobs / "fast_server.py")
    pieces = (uuid.uuid4().bytes * 1024 for _ in range(200))
    assert router.post(path + "/http/sink", data=pieces).text == str(200 * 16384)
    router.post(path + "/remove")


def test_a_query_passes_with_repeated_keys_and_signs(router: Router, agent: Agent, jobs: Path) -> None:
    path = router.create(agent.uid)
    router.start(path, [sys.executable, str(jobs / "prefix_server.py")], expose={"port": "assign"})
    target = "/q%C3%A4/a%2Fb?key=value&r=1&r=2&equals=not=fun&plus=a+b%20c&%D0%AE=%FF&empty="
    assert router.get(path + "/http" + target).json()["path"] == target
    assert router.get(path + "/http/q?").json()["path"] in ("/q?", "/q")
    router.post(path + "/remove")


@pytest.fixture(scope="module")
def sockets(router: Router, agent: Agent) -> Iterator[str]:
    """The WebSocket address of a job."""
    path = router.serve(agent.uid, Path(__file__).parents[1] / "jobs" / "websocket_server.py")
    yield router.url.replace("http", "ws") + path + "/http"
    router.post(path + "/remove")


def test_websocket_messages_come_back_as_they_are(sockets: str) -> None:
    with connect(sockets + "/echo") as websocket:
        for message in (uuid.uuid4().bytes, uuid.uuid4().hex, b"", "", "ЮНИКОД", b"x" * 300_000):
            websocket.send(message)
            assert websocket.recv(timeout=20) == message


def drain(websocket: ClientConnection) -> None:
    """Read until the other side closes."""
    while True:
        websocket.recv(timeout=20)


def test_a_websocket_that_the_job_closes_ends_for_the_client(sockets: str) -> None:
    with connect(sockets + "/close?code=4001&reason=enough") as websocket:
        websocket.send("go")
        with pytest.raises(ConnectionClosed) as closed:
            drain(websocket)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/no_such_path", 404)])
def test_a_websocket_that_the_job_refuses_gets_the_jobs_own_answer(
    router: Router, server: str, path: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(router.url.replace("http", "ws") + server + "/http" + path).close()
    assert refused.value.response.status_code == status


# Files and archives.


def test_a_large_file_comes_back_the_same(router: Router, job: str) -> None:
    data = uuid.uuid4().bytes * (1 << 19)
    sent = requests.post(router.url + job + "/file/the_data.bin", data=io.BytesIO(data), headers=BINARY, timeout=60)
    assert (sent.status_code, sent.content) == (200, b"")
    got = router.get(job + "/file/the_data.bin")
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Length"] == str(len(data))
    assert got.content == data


FILES = ["something.py", "whatever.dat", "großer/stuff.txt", "nested/èüîû god why.py"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [*FILES, "großer", "nested", "link"]),
        ({"compress": "1"}, [*FILES, "großer", "nested", "link"]),
        ({"include": "*.py", "compress": "0"}, ["something.py", "nested/èüîû god why.py"]),
        ({"include": "*.py", "exclude": "something*"}, ["nested/èüîû god why.py"]),
        ({"include": "*.py", "exclude": "nested/*"}, ["something.py"]),
        ({"include": "nested/*"}, ["nested/èüîû god why.py"]),
    ],
)
def test_archives_pass_masks_as_the_original_reads_them(
    router: Router, job: str, query: dict[str, str], expected: list[str]
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in FILES:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(name), 0o751, 1_500_000_000
            archive.addfile(member, io.BytesIO(b"x" * member.size))
        archive.addfile(_link("link"))
    sent = router.post(job + "/archive", data=buffer.getvalue(), headers=BINARY)
    assert (sent.status_code, sent.content) == (200, b"")
    answer = router.get(job + "/archive", params=query)
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r") as archive:
        found = {member.name.removeprefix("./"): member for member in archive.getmembers()}
        assert sorted(found) == sorted(expected)
        for name, member in found.items():
            if member.isfile():
                assert (member.size, member.mode & 0o777, int(member.mtime)) == (len(name), 0o751, 1_500_000_000)
    if "compress" not in query:
        assert answer.headers["Content-Length"] == str(len(answer.content))


def _link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "something.py"
    return member


# The operator: command lines and files as they were.

ROUTER_FILE = """
identity: {name: router, uid: null}
server: {enabled: True, port: 0, interface: 127.0.0.1, accept_tokens: []}
control: {interface: 127.0.0.1, port: 0}
client: {polling_delay: 5}
"""
AGENT_FILE = """
identity: {name: agent, uid: null}
server: {enabled: True, port: 0, interface: 127.0.0.1, accept_tokens: []}
client: {enabled: False, address: "", token: default, exit_on_fail: False, reconnect_delay: 10.}
control: {enabled: True, interface: 127.0.0.1, port: 0}
jobs: {background_threads: 1, root: null}
properties: {}
"""


def test_the_originals_command_lines_and_files_start_a_router_and_an_agent(work_dir: Path) -> None:
    (work_dir / "router.yaml").write_text(ROUTER_FILE)
    (work_dir / "agent.yaml").write_text(AGENT_FILE)
    common = [sys.executable, "-m", "prouter"]
    options = ["--log-level", "info", "--connection-debug", "--log-format", "%(message)s"]
    state = {"XDG_STATE_HOME": str(work_dir / "state"), "XDG_RUNTIME_DIR": str(work_dir)}
    tokens = ["--set", 'server.accept_tokens=["0123456789abcdef0123456789abcdef"]']
    router = Process(
        [*common, "--config", str(work_dir / "router.yaml"), *options, *tokens], work_dir / "router.log", state
    )
    agent: Process | None = None
    try:
        ready = router.wait_line(r"^ready control=(http://\S+) agents=(?:tcp://)?(\S+)")
        sets = [
            *("--set", 'identity.uid="the agent"', "--set", "client.enabled=True"),
            *("--set", f'client.address="{ready[2]}"', "--set", 'client.token="0123456789abcdef0123456789abcdef"'),
            *("--set", "client.reconnect_delay=1", "--set", "properties={'a b': 'set'}"),
            *("--property", "ЮНИКОД c=1=2", "--property", "number=1"),
        ]
        agent = Process(
            [*common, "agent", "--config", str(work_dir / "agent.yaml"), *options, *sets], work_dir / "agent.log", state
        )
        url = agent.wait_line(r"^ready agent=the agent .*control=(http://\S+)")[1]
        (connection,) = requests.get(ready[1] + "/connections", timeout=10).json()["connections"]
        assert connection["peer"]["properties"] == {"a b": "set", "ЮНИКОД c": "1=2", "number": "1"}
        created = requests.post(
            ready[1] + "/jobs/create", json={"name": "n", "agent": {"type": "uid", "uid": "the agent"}}, timeout=10
        ).json()
        check_control(url, created)
        assert requests.post(ready[1] + "/shutdown", timeout=10).content == b""
        assert router.popen.wait(30) == 0
        assert requests.post(url + "/shutdown", timeout=10).status_code == 200
        assert agent.popen.wait(30) == 0
    finally:
        for process in (agent, router):
            if process is not None:
                process.stop()


def check_control(url: str, created: dict[str, Any]) -> None:
    """The agent's own API has the original's shape, without tokens."""
    answer = requests.get(url + "/jobs", timeout=10)
    (job,) = answer.json()["jobs"]
    assert set(job) == {"uid", "name", "sandbox", "sender", "port", "state"}
    assert (job["uid"], job["name"], job["port"], job["state"]) == (created["uid"], "n", None, "NEW")
    assert job["sandbox"].endswith(created["uid"])
    assert set(job["sender"]) == {"direction", "connection", "uid", "name"}
    assert job["sender"]["name"] == "router"
    assert answer.headers["Expires"] == "0"
    assert set(requests.get(url + "/info", timeout=10).json()) == {"auth", "platform", "properties"}
    assert len(requests.get(url + "/connections", timeout=10).json()["connections"]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "nonsense=1"], "there is no key 'nonsense'"),
        (["--set", "control.port='x'"], "control.port"),
        (["--config", "/no/such/file"], "/no/such/file"),
        (
            ["agent", "--set", "client.enabled=False", "--set", "server.enabled=False"],
            "both this and server.enabled are off",
        ),
        (["agent", "--property", "nothing"], "is not NAME=VALUE"),
    ],
)
def test_wrong_command_lines_end_with_a_reason(arguments: list[str], says: str, work_dir: Path) -> None:
    command = [sys.executable, "-m", "prouter", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=work_dir)
    assert (ended.returncode, says in ended.stderr) == (2, True), ended.stderr


def test_the_help_lists_every_key_of_the_original() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "prouter", "up", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for key in (
        "client.polling_delay", "control.interface", "control.port", "identity.name", "identity.uid",
        "server.accept_tokens", "server.enabled", "server.interface", "server.port", "--config", "--log-level",
        "--connection-debug", "--set",
    ):  # fmt: skip
        assert key in shown


# Losses.


def test_an_agent_that_is_away_for_a_moment_keeps_its_jobs(router: Router, launch: Callable[..., Any]) -> None:
    """In the original a lost connection removes all its jobs."""
    agent = launch(start_agent, router)
    path = router.create(agent.uid)
    router.start(path, ["sleep", "1000"], port_expected_count=0)
    agent.popen.send_signal(19)
    wait_until(lambda: any(not c["up"] for c in router.get("/connections").json()["connections"]), 30)
    agent.popen.send_signal(18)
    wait_until(lambda: all(c["up"] for c in router.get("/connections").json()["connections"]), 30)
    assert router.get(path + "/info").json()["state"] == "RUNNING"
    router.post(path + "/remove")


# The Python client.


def test_the_requests_of_the_originals_python_client_work(router: Router, agent: Agent, jobs: Path) -> None:
    """Its methods one after another, each as the request it sends."""
    (known,) = [c for c in router.get("/connections").json()["connections"] if c["peer"]["auth"]["uid"] == agent.uid]
    created = router.post("/jobs/create", {"name": "n", "agent": {"type": "select", "uids": [agent.uid]}}).json()
    path = created["path"]
    assert path.split("/")[2] == known["uid"]
    assert router.get(path + "/info").json()["uid"] == created["uid"]
    tool = (jobs / "websocket_server.py").read_bytes()
    length = {"Content-Length": str(len(tool))}
    sent = router.post(
        path + "/file/bin/tool.py", data=io.BytesIO(tool), headers={**BINARY, **length}, params={"executable": "1"}
    )
    assert sent.status_code == 200
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(jobs, arcname="tree/jobs", filter=lambda m: None if "__pycache__" in m.name else m)
    packed = buffer.getvalue()
    headers = {**BINARY, "Content-Length": str(len(packed))}
    assert router.post(path + "/archive", data=io.BytesIO(packed), headers=headers).status_code == 200
    reports = "import os, sys, urllib.request as u, socket, subprocess, time\n" + WAITS
    started = router.post(path + "/start", {"args": [sys.executable, "-c", reports], "env": {}}, timeout=60)
    assert started.json()["state"] == "RUNNING", started.text
    assert router.get(path + "/file/tree/jobs/notify_server.py").content == (jobs / "notify_server.py").read_bytes()
    answer = router.get(path + "/archive", params={"include": "tree/*", "exclude": "*notify*"})
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = archive.getnames()
    assert "tree/jobs/fast_server.py" in names
    assert not any("notify" in name or not name.startswith("tree/") for name in names)
    assert router.get(path + "/http/seen").json()["open"] == 0
    with connect(router.url.replace("http", "ws") + path + "/http/echo") as websocket:
        websocket.send("to and fro")
        assert websocket.recv(timeout=20) == "to and fro"
    assert router.post(path + "/remove").json()["state"] == "RUNNING"


WAITS = """
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server = subprocess.Popen([sys.executable, "bin/tool.py", str(port)])
while True:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
query = "?job_id=%s&port=%d" % (os.environ["DA__PAGENT__JOB_ID"], port)
assert u.urlopen(os.environ["DA__PAGENT__JOB_ENDPOINT"] + query).read() == b"OK"
server.wait()
"""
