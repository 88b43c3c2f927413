"""Programs written for the original pRouter work unchanged: requests, responses, texts.

The contract is told in docs/http-api.md.
"""

from __future__ import annotations

import ast
import io
import json
import platform
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Agent, Router, processes_with, start_agent, start_router, wait_until

PLATFORM = {"system", "node", "release", "version", "machine", "processor"}
STATES = {"NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED"}


def send(router: Router, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
    """A request as the original's client makes it: JSON without saying so."""
    data = None if body is None else json.dumps(body).encode()
    return requests.request(method, router.url + path, data=data, headers=headers, timeout=60)


def create(router: Router, agent: str) -> dict[str, Any]:
    answer = send(router, "POST", "/jobs/create", {"name": "job", "agent": {"type": "uid", "uid": agent}})
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = answer.json()
    return info


def test_info_and_connections_have_the_originals_shape(router: Router, agent: Agent) -> None:
    for path in ("/info", "/info/"):
        answer = send(router, "GET", path)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store, must-revalidate"
        assert set(answer.json()["auth"]) == {"uid", "name"}
        assert set(answer.json()["platform"]) == PLATFORM
        assert answer.json()["auth"]["name"] == "router"
    entry = next(
        entry
        for entry in send(router, "GET", "/connections/").json()["connections"]
        if entry["peer"]["auth"]["uid"] == agent.uid
    )
    assert entry["mode"] == "SERVER"
    assert entry["peer"]["auth"] == {"uid": agent.uid, "name": platform.node()}
    assert set(entry["peer"]["platform"]) == PLATFORM
    assert entry["peer"]["properties"] == {}


def test_a_job_lives_as_in_the_original(router: Router, agent: Agent) -> None:
    info = create(router, agent.uid)
    path = info["path"]
    assert path == f"/jobs/{path.split('/')[2]}/{info['uid']}"
    assert (info["name"], info["state"]) == ("job", "NEW")
    assert info["sender"]["direction"] == "CLIENT"
    assert set(info["sender"]) == {"direction", "uid", "name"}
    assert set(info["agent"]["platform"]) == PLATFORM
    script = "import os; print(os.getcwd()); open('out', 'w').write(os.environ['A'])"
    start = {"args": [sys.executable, "-c", script], "env": {"A": "1"}, "cwd": None, "port_expected_count": 0}
    started = send(router, "POST", path + "/start", {**start, "forward_stdout": False, "name": "job"})
    assert started.status_code == 200, started.text
    assert started.json()["state"] in STATES
    waited = send(router, "POST", path + "/wait")
    assert waited.status_code == 200
    assert waited.json()["state"] == "FINISHED"
    for method in ("GET", "POST"):
        assert send(router, method, path + "/info/").json()["state"] == "FINISHED"
    assert send(router, "GET", path + "/file/out").content == b"1"
    assert b"/" in send(router, "GET", path + "/file/.pagent.stdout").content
    removed = send(router, "POST", path + "/remove")
    assert removed.status_code == 200
    assert removed.json()["state"] == "FINISHED"
    gone = send(router, "GET", path + "/info")
    assert gone.status_code == 404
    assert f"job '{info['uid']}' is not found" in gone.text


def test_the_originals_job_server_reports_its_port(router: Router, agent: Agent, jobs: Path) -> None:
    path = create(router, agent.uid)["path"]
    started = send(
        router, "POST", path + "/start", {"args": [sys.executable, str(jobs / "notify_server.py")], "env": {}}
    )
    assert started.status_code == 200, started.text
    assert started.json()["state"] == "RUNNING"
    assert send(router, "GET", path + "/http/").status_code == 200
    assert send(router, "POST", path + "/remove").status_code == 200


def test_files_and_archives(router: Router, agent: Agent) -> None:
    path = create(router, agent.uid)["path"]
    uploaded = send(
        router, "POST", path + "/file/deep/er/tool?executable=1", "x", **{"Content-Type": "application/octet-stream"}
    )
    assert (uploaded.status_code, uploaded.content) == (200, b"")
    answer = send(router, "GET", path + "/file/deep/er/tool?remove=0")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Length"] == str(len(answer.content))
    packed = send(router, "GET", path + "/archive?include=deep*&exclude=*.pyc&compress=1")
    assert packed.status_code == 200
    with tarfile.open(fileobj=io.BytesIO(packed.content), mode="r:gz") as archive:
        tool = next(member for member in archive.getmembers() if member.name.endswith("deep/er/tool"))
        assert tool.mode & 0o111
    plain = send(router, "GET", path + "/archive")
    assert plain.headers["Content-Length"] == str(len(plain.content))
    assert [answer.headers["Content-Type"] for answer in (plain, packed)] == ["application/x-tar", "application/gzip"]
    again = create(router, agent.uid)["path"]
    unpacked = requests.post(router.url + again + "/archive", data=plain.content, timeout=30)
    assert (unpacked.status_code, unpacked.content) == (200, b"")
    assert send(router, "GET", again + "/file/deep/er/tool").content == answer.content
    assert send(router, "GET", again + "/file/deep/er/tool?remove=1").status_code == 200
    wait_until(lambda: send(router, "GET", again + "/file/deep/er/tool").status_code == 404)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"name": "x"},
        {"name": 1, "agent": {"type": "uid", "uid": "a"}},
        {"name": "x", "agent": {"type": "uid", "uid": "a"}, "more": 1},
        {"name": "x", "agent": {"type": "uid", "uid": "a", "more": 1}},
        {"name": "x", "agent": {"type": "select", "uids": []}},
        {"name": "x", "agent": {"type": "address", "address": "h:1"}},
        {"name": "x", "agent": {"type": "nothing"}},
        [],
    ],
)
def test_a_body_that_does_not_fit_is_an_invalid_request(router: Router, body: Any) -> None:
    answer = send(router, "POST", "/jobs/create", body)
    assert answer.status_code == 400
    assert "Invalid request" in answer.text


def test_texts_of_what_is_not_there(router: Router, agent: Agent) -> None:
    nobody = send(router, "POST", "/jobs/create", {"name": "x", "agent": {"type": "uid", "uid": "nobody"}})
    assert nobody.status_code == 404
    assert "no connected agent with uid 'nobody'" in nobody.json()["detail"]
    for method, verb in (("GET", "info"), ("POST", "wait"), ("POST", "remove"), ("GET", "file/x"), ("GET", "http/x")):
        missing = send(router, method, f"/jobs/nowhere/x/{verb}")
        assert missing.status_code == 404
        assert "connection 'nowhere' is not found" in missing.json()["detail"]
    path = create(router, agent.uid)["path"]
    assert send(router, "POST", path + "/start", {"args": ["true"]}).status_code == 400
    selected = {"name": "x", "agent": {"type": "select", "uids": ["nobody", agent.uid]}}
    assert send(router, "POST", "/jobs/create", selected).json()["agent"]["uid"] == agent.uid


def test_agents_that_listen_are_dialled_with_a_token(launch: Callable[..., Any]) -> None:
    router = launch(start_router, client__polling_delay=1.0)
    # An agent that only listens tells where in its ready line.
    agent = launch(
        start_agent, "127.0.0.1:1", client__enabled=False, server__enabled=True, server__port=0,
        server__accept_tokens=["right"],
    )  # fmt: skip
    address = agent.ready.partition("listen=tcp://")[2].split()[0]
    choice = {"type": "address", "address": address, "token": "right"}
    refused = send(router, "POST", "/jobs/create", {"name": "x", "agent": {**choice, "token": "wrong"}})
    assert 400 <= refused.status_code < 600
    assert refused.status_code != 500
    info = send(router, "POST", "/jobs/create", {"name": "x", "agent": choice}).json()
    assert info["sender"]["direction"] == "SERVER"
    connections = send(router, "GET", "/connections").json()["connections"]
    assert [entry["mode"] for entry in connections] == ["CLIENT"]
    assert "right" not in json.dumps(connections)
    answer = send(router, "POST", info["path"] + "/start", {"args": ["true"], "env": {}, "port_expected_count": 0})
    assert answer.status_code == 200, answer.text
    assert send(router, "POST", info["path"] + "/wait").json()["state"] == "FINISHED"
    assert send(router, "POST", info["path"] + "/remove").status_code == 200
    wait_until(lambda: not send(router, "GET", "/connections").json()["connections"], 15, "the idle link is dropped")


def test_agents_need_the_routers_token(launch: Callable[..., Any]) -> None:
    router = launch(start_router, server__accept_tokens=["secret-token"])
    agent = launch(start_agent, router, client__token="secret-token")
    with pytest.raises(AssertionError):
        launch(start_agent, router, client__token="guess", client__exit_on_fail=True)
    connections = send(router, "GET", "/connections").json()["connections"]
    assert [entry["peer"]["auth"]["uid"] for entry in connections] == [agent.uid]
    assert "secret-token" not in json.dumps(connections)
    assert "secret-token" not in router.log.read_text()
    assert "secret-token" not in agent.log.read_text()


def test_answers_without_a_body_are_not_called_json(router: Router, agent: Agent) -> None:
    path = create(router, agent.uid)["path"]
    for name, body in (("file/empty", ""), ("archive", _packed("member")), ("file/a/b?executable=1", "x")):
        answer = requests.post(f"{router.url}{path}/{name}", data=body, timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == "application/octet-stream"
    gone = requests.delete(f"{router.url}{path}/file/empty", timeout=30)
    assert (gone.status_code, gone.headers.get("Content-Type")) == (204, None)
    assert send(router, "GET", path + "/info").headers["Content-Type"] == "application/json"
    assert send(router, "GET", path + "/file/none").headers["Content-Type"] == "application/problem+json"


def _packed(name: str) -> bytes:
    """A tar that holds an empty file."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return target.getvalue()


def test_shutdown_ends_the_router(launch: Callable[..., Any]) -> None:
    router = launch(start_router)
    ended = send(router, "POST", "/shutdown")
    assert (ended.content, ended.headers["Content-Type"]) == (b"", "application/octet-stream")
    assert router.popen.wait(20) == 0


def run(router: Router, agent: str, script: str, **start: Any) -> str:
    """The path of a job that has run `script` to its end."""
    path: str = create(router, agent)["path"]
    body = {"args": [sys.executable, "-c", script], "env": {}, "port_expected_count": 0, **start}
    started = send(router, "POST", path + "/start/", body)
    assert started.status_code == 200, started.text
    waited = send(router, "POST", path + "/wait/")
    assert waited.json()["state"] == "FINISHED"
    return path


def test_trailing_slashes_and_any_content_type_will_do(router: Router, agent: Agent) -> None:
    body = {"name": "x", "agent": {"type": "uid", "uid": agent.uid}}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        answer = send(router, "POST", "/jobs/create/", body, **{"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.headers["Cache-Control"] == "no-store, must-revalidate"
        path = answer.json()["path"]
        assert send(router, "GET", path + "/archive/").status_code == 200
        waited = send(router, "POST", path + "/wait/")
        assert (waited.status_code, waited.json()["state"]) == (200, "NEW")
        removed = send(router, "POST", path + "/remove/")
        assert (removed.status_code, removed.json()["state"]) == (200, "NEW")


def test_a_job_sees_what_the_original_showed_it(launch: Callable[..., Any]) -> None:
    router = launch(start_router)
    agent = launch(start_agent, router, properties={"gpu": "two", "cores": 4, "a Größe": "Ж"})
    entry = send(router, "GET", "/connections").json()["connections"][0]
    assert entry["peer"]["properties"] == {"gpu": "two", "cores": 4, "a Größe": "Ж"}
    script = (
        "import json, os; json.dump([os.getcwd(), dict(os.environ)], open(os.environ['OUT'], 'w'));"
        "import sys; print('to stdout'); print('to stderr', file=sys.stderr)"
    )
    path = run(router, agent.uid, script, env={"OUT": "seen", "DA__PAGENT__cores": "mine"})
    cwd, environment = send(router, "GET", path + "/file/seen").json()
    assert Path(cwd).name == path.split("/")[3]
    assert (environment["DA__PAGENT__gpu"], environment["DA__PAGENT__cores"]) == ("two", "mine")
    assert environment["DA__PAGENT__a Größe"] == "Ж"
    assert "DA__PAGENT__JOB_ENDPOINT" not in environment
    assert send(router, "GET", path + "/file/.pagent.stdout").content == b"to stdout\n"
    assert send(router, "GET", path + "/file/.pagent.stderr").content == b"to stderr\n"
    forwarded = run(router, agent.uid, script, env={"OUT": "seen"}, forward_stdout=True)
    assert send(router, "GET", forwarded + "/file/.pagent.stdout").content != b"to stdout\n"
    below = create(router, agent.uid)["path"]
    assert send(router, "POST", below + "/file/deep/er/x", "x").status_code == 200
    body = {"args": [sys.executable, "-c", script], "env": {"OUT": "seen"}, "cwd": "deep/er", "port_expected_count": 0}
    assert send(router, "POST", below + "/start", body).status_code == 200
    assert send(router, "POST", below + "/wait").status_code == 200
    assert send(router, "GET", below + "/file/deep/er/seen").json()[0].endswith("/deep/er")


REPORTS = """
import os, socket, sys, urllib.error, urllib.request
server = socket.create_server(("127.0.0.1", 0))
def tell(query):
    try:
        with urllib.request.urlopen(os.environ["DA__PAGENT__JOB_ENDPOINT"] + "?" + query) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
job = os.environ["DA__PAGENT__JOB_ID"]
wrong = [tell("job_id=nobody&port=1"), tell(f"job_id={job}&port=x"), tell(f"job_id={job}"), tell("")]
right = tell(f"job_id={job}&port={server.getsockname()[1]}")
open("told", "w").write(repr([wrong, right]))
import time
time.sleep(1000)
"""


def test_ports_are_reported_as_in_the_original(router: Router, agent: Agent) -> None:
    path = create(router, agent.uid)["path"]
    answer = send(router, "POST", path + "/start", {"args": [sys.executable, "-c", REPORTS], "env": {}})
    assert answer.status_code == 200, answer.text
    wait_until(lambda: send(router, "GET", path + "/file/told").text.endswith("]"))
    wrong, right = ast.literal_eval(send(router, "GET", path + "/file/told").text)
    assert right == (200, b"OK")
    assert [status for status, _ in wrong] == [400] * 4
    assert all(reason for _, reason in wrong)
    again = send(router, "POST", path + "/start", {"args": ["true"], "env": {}})
    assert again.status_code == 409
    assert send(router, "POST", path + "/remove").json()["state"] == "RUNNING"
    dying = create(router, agent.uid)["path"]
    failed = send(router, "POST", dying + "/start", {"args": [sys.executable, "-c", "raise SystemExit(3)"], "env": {}})
    assert 400 <= failed.status_code < 600
    assert failed.status_code != 500
    missing = create(router, agent.uid)["path"]
    failed = send(router, "POST", missing + "/start", {"args": ["/no/such/program"], "env": {}})
    assert failed.status_code == 502, failed.text
    assert "'/no/such/program' was not found" in failed.json()["detail"]


def test_a_job_can_be_waited_for_and_removed_at_the_same_time(router: Router, agent: Agent) -> None:
    path = create(router, agent.uid)["path"]
    script = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True).wait()"
    body = {"args": [sys.executable, "-c", script], "env": {}, "port_expected_count": 0}
    assert send(router, "POST", path + "/start", body).status_code == 200
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(send, router, "POST", path + "/wait")
        wait_until(lambda: len(processes_with(path.split("/")[3])) >= 2)
        assert not waiting.done()
        assert send(router, "POST", path + "/remove").status_code == 200
        waiting.result(10)
    wait_until(lambda: not processes_with(path.split("/")[3]), what="the tree is gone")


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("GET", "info"), ("POST", "info"), ("POST", "wait"), ("POST", "remove"), ("POST", "start"), ("GET", "file/x"),
        ("POST", "file/x"), ("GET", "archive"), ("POST", "archive"), ("GET", "http/x"), ("POST", "http/x"),
        ("POST", "wsconnect/x"),
    ],
)  # fmt: skip
def test_every_verb_names_the_job_that_is_not_there(router: Router, agent: Agent, method: str, verb: str) -> None:
    connection = create(router, agent.uid)["path"].split("/")[2]
    body = {"start": {"args": ["true"], "env": {}}, "wsconnect": {"url": "ws://h/"}}.get(verb.partition("/")[0], "x")
    answer = send(router, method, f"/jobs/{connection}/nothing/{verb}", body)
    assert answer.status_code == 404, answer.text
    assert "job 'nothing' is not found" in answer.json()["detail"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "", ":1", "h:99999"])
def test_addresses_that_are_none_are_refused(router: Router, address: str) -> None:
    choice = {"type": "address", "address": address, "token": "t"}
    answer = send(router, "POST", "/jobs/create", {"name": "x", "agent": choice})
    assert answer.status_code == 400, answer.text
    assert "Invalid request" in answer.text
