"""Access tokens, roles and owners over the wire, with a real router of two workers and a real agent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from prouter.web.admin.operations import OPERATIONS, Operation
from prouter.web.route_roles import JOB_HTTP
from tests.bench.nginx import Nginx
from tests.support.access import ROLES, WORKERS, Guarded, new_token, token_command
from tests.support.ports import free_port
from tests.support.processes import Agent, Process, Router, start_agent, start_router, wait_until
from tests.support.programs import needed
from tests.support.raw_http import Raw

PAGE = Path(__file__).parents[2] / "docs" / "access.md"
ECHO = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
"""A job that answers with the fields of the request."""
TCP = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
WEBSOCKETS = str(Path(__file__).parents[1] / "jobs" / "websocket_server.py")


@pytest.fixture(scope="module")
def it(short_dir: Path) -> Iterator[Guarded]:
    directory = short_dir / "guarded"
    directory.mkdir()
    guarded = Guarded(directory, **{"control.job_domain": "jobs.localhost"})
    yield guarded
    guarded.stop()


# -- the table of roles -----------------------------------------------------------------------------------------

_FRESH = frozenset({"remove", "stop", "delete"})
"""Operations that change their job for those that follow."""


def allowed(need: str, who: str | None) -> bool:
    """What the contract says, not the code: who may use a route of a job that `user` owns."""
    ranks = {"viewer": 1, "user": 2, "other": 2, "operator": 3, "admin": 4}
    rank = ranks.get(who or "", 0)
    if need == "owner":
        return who == "user" or rank >= 3
    return rank >= {"nothing": 0, "viewer": 1, "user": 2, "operator": 3, "admin": 4}[need]


def need_by_contract(operation: Operation) -> str:
    """``viewer`` reads everything but files and logs; ``user`` has its own jobs; ``admin`` tokens and shutdown."""
    path, method = operation.path, operation.method
    if path in ("/healthz", "/readyz", "/sign-in", "/.well-known/jwks.json"):
        return "nothing"
    if path == "/enter":  # the form has to be sent by the page, which is for those who are signed in
        return "viewer" if method == "get" else "nothing"
    if path == "/sign-out":
        return "viewer"
    if path.startswith("/tokens") or path == "/shutdown":
        return "admin"
    if path.endswith(("/drain", "/resume")):
        return "operator"
    if path in ("/jobs/create", "/jobs/run"):
        return "user"
    if any(part in path for part in ("/file", "/archive", "/logs", "/share", "/tcp/")):
        return "owner"
    reads = method in ("get", "head") or path.endswith(("/info", "/wait"))
    return "viewer" if reads else "owner"


def request_of(operation: Operation, it: Guarded, path: str) -> tuple[str, str, dict[str, Any]]:
    """A request that reaches the operation and, where it would change something, is wrong in its body."""
    target = operation.path.replace("/jobs/{connection}/{job}", path).replace("{connection}", it.connection)
    target = (
        target.replace("{rest}", "x")
        .replace("{name}", "stdout")
        .replace("{token}", "none")
        .replace("{share}", "none")
        .replace("{port}", "1")
    )
    body = {"data": b"{"} if operation.method == "post" else {}
    return operation.method.upper(), target, body


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_route_is_for_those_the_contract_names(it: Guarded, operation: Operation) -> None:
    path = it.job("user")
    need = need_by_contract(operation)
    for who in (None, *it.tokens):
        if operation.name == "shutdown" and who == "admin":
            continue  # see the last test
        if operation.name in _FRESH and allowed(need, who):
            path = it.job("user")
        method, target, options = request_of(operation, it, path)
        answer = it.ask(who, method, target, stream=True, **options)
        with answer:
            expected = 0 if allowed(need, who) else 401 if who is None else 403
            seen = answer.status_code if answer.headers.get("X-PRouter-Error") in ("unauthorized", "role_needed") else 0
            assert seen == expected, f"{who}: {answer.status_code} {answer.headers}"
            if expected == 401:
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    it.ask("operator", "POST", f"/connections/{it.connection}/resume")


def test_tcp_to_a_jobs_ports_is_its_owners_and_the_operators(it: Guarded) -> None:
    path = it.job("user", sys.executable, "-c", ECHO, expose={"port": "assign"})
    for who in (None, *it.tokens):
        bearer = f"Authorization: Bearer {it.tokens[who]}\r\n" if who is not None else ""
        with Raw(it.router.url) as raw:
            raw.request("GET", f"{path}/tcp/http", bearer + TCP)
            head = raw.read_until(b"\r\n\r\n")
        expected = 101 if allowed("owner", who) else 401 if who is None else 403
        assert head.startswith(b"HTTP/1.1 %d " % expected), (who, head)
    # A browser remembers passwords: a page of the router's own origin is a job's, perhaps.
    page = {"Origin": it.router.url, "Connection": "Upgrade", "Upgrade": "websocket"}
    url = f"{it.router.url}{path}/tcp/http"
    answer = requests.get(url, auth=("me", it.tokens["user"]), headers=page, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (401, "proof_needed")
    it.ask("user", "POST", f"{path}/remove")


@pytest.mark.parametrize("way", ["path", "host", "upgrade"])
def test_a_jobs_own_pages_are_its_owners_and_the_operators(it: Guarded, way: str) -> None:
    assert JOB_HTTP == "http"
    path = it.job("user", sys.executable, "-c", ECHO, expose={"port": "assign"})
    host = {"Host": f"{path.rpartition('/')[2]}.jobs.localhost"} if way == "host" else {}
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"} if way == "upgrade" else {}
    for who in (None, *it.tokens):
        target = "/x" if way == "host" else f"{path}/http/x"
        answer = it.ask(who, "GET", target, headers={**host, **upgrade})
        expected = 200 if allowed("owner", who) else 401 if who is None else 403
        assert answer.status_code == expected, (who, answer.text)
        assert ("X-PRouter-Error" in answer.headers) is (expected != 200)
    other = it.ask("other", "GET", "/x" if way == "host" else f"{path}/http/x", headers=host)
    assert "belongs to 'user': this needs the role operator" in other.json()["detail"]
    it.ask("user", "POST", f"{path}/remove")


def test_a_job_that_has_not_started_is_nobody_elses_either(it: Guarded) -> None:
    path = it.job("user")
    assert it.ask("other", "GET", f"{path}/http/").status_code == 403
    assert it.ask("user", "GET", f"{path}/http/").status_code == 503
    assert it.ask("viewer", "GET", "/jobs/nowhere/nothing/http/").status_code == 404
    it.ask("user", "POST", f"{path}/remove")


def test_without_credentials_there_is_nothing(it: Guarded) -> None:
    for target in ("/nowhere", "/tokens/x", "/jobs/a/b/http/", "/jobs/a/b/info", "/"):
        answer = it.ask(None, "GET", target)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="pRouter"'
    page = it.ask(None, "GET", "/", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert page.headers["WWW-Authenticate"] == 'Bearer realm="pRouter"'
    assert "text/html" in page.headers["Content-Type"]
    for wrong in ("prt_wrong", "Bearer", ""):
        assert it.ask(wrong, "GET", "/info").status_code == 401


def test_a_program_signs_in_with_the_token_as_password(it: Guarded) -> None:
    answer = requests.get(it.router.url + "/", auth=("anybody", it.tokens["viewer"]), timeout=30)
    assert answer.status_code == 200
    assert "<html" in answer.text


def test_whoami_says_who_one_is(it: Guarded) -> None:
    for role in ROLES:
        assert it.ask(role, "GET", "/whoami").json() == {"name": role, "role": role, "via": "token"}


# -- owners -----------------------------------------------------------------------------------------------------


def test_a_job_has_its_owner_in_info_lists_and_events(it: Guarded) -> None:
    last = it.ask("viewer", "GET", "/events", stream=True, headers={"Accept": "text/event-stream"})
    path = it.job("other")
    uid = path.rpartition("/")[2]
    assert it.ask("viewer", "GET", f"{path}/info").json()["owner"] == "other"
    mine = it.ask("viewer", "GET", "/jobs", params={"owner": "other"}).json()["jobs"]
    assert uid in {job["uid"] for job in mine}
    assert {job["owner"] for job in mine} == {"other"}
    assert it.ask("viewer", "GET", "/jobs", params={"owner": "nobody"}).json()["jobs"] == []
    with last:
        for line in last.iter_lines(chunk_size=1):
            if line.startswith(b"data: ") and uid.encode() in line:
                assert json.loads(line[6:])["job"]["owner"] == "other"
                break
    it.ask("other", "POST", f"{path}/remove")
    closed = it.ask("viewer", "GET", "/jobs", params={"owner": "other", "state": "CLOSED"}).json()["jobs"]
    assert uid in {job["uid"] for job in closed}


def test_owners_outlive_broker_and_agent(it: Guarded) -> None:
    path = it.job("other", "sleep", "1000", port_expected_count=0)
    it.agent.kill()
    it.agent = start_agent(it.directory.parent / "agent", it.router)

    def back() -> bool:
        info = it.ask("viewer", "GET", f"{path}/info")
        return info.status_code == 200 and info.json()["confirmed"] and info.json()["owner"] == "other"

    wait_until(back, what="the job is back with its owner")
    broker = it.router.child("broker")
    os.kill(broker, signal.SIGKILL)
    wait_until(lambda: it.router.child("broker") != broker, what="a new broker")
    wait_until(back, what="the new broker knows the owner")
    assert it.ask("user", "POST", f"{path}/signal", json={"signal": "TERM"}).status_code == 403
    wait_until(lambda: it.ask("other", "POST", f"{path}/remove").status_code == 200, what="its owner removes it")
    wait_until(lambda: it.agent.uid in it.ask("viewer", "GET", "/connections").text, what="the agent is linked")


def test_one_key_of_two_users_makes_two_jobs(it: Guarded) -> None:
    body = {"name": "keyed", "agent": {"type": "uid", "uid": it.agent.uid}}
    made = [
        it.ask(who, "POST", "/jobs/create", json=body, headers={"Idempotency-Key": "one key"}).json()
        for who in ("user", "other", "user")
    ]
    assert made[0]["uid"] == made[2]["uid"] != made[1]["uid"]
    assert [job["owner"] for job in made] == ["user", "other", "user"]
    for who, job in (("user", made[0]), ("other", made[1])):
        it.ask(who, "POST", job["path"] + "/remove")


# -- what the job learns ----------------------------------------------------------------------------------------


def test_a_job_does_not_get_our_credentials(it: Guarded) -> None:
    path = it.job("user", sys.executable, "-c", ECHO, expose={"port": "assign"})
    seen = it.ask("user", "GET", f"{path}/http/", headers={"X-Other": "passes"}).json()
    assert "Authorization" not in seen
    assert seen["X-Other"] == "passes"
    basic = requests.get(f"{it.router.url}{path}/http/", auth=("me", it.tokens["user"]), timeout=30).json()
    assert "Authorization" not in basic
    assert it.tokens["user"] not in json.dumps(basic)
    it.ask("user", "POST", f"{path}/remove")


def test_without_access_control_credentials_are_the_jobs(router: Router, agent: Agent, tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    path = router.serve(agent.uid, script)
    seen = router.get(f"{path}/http/", headers={"Authorization": "Basic am9iOmpvYg=="}).json()
    assert seen["Authorization"] == "Basic am9iOmpvYg=="
    assert router.get(f"{path}/info").json()["owner"] is None
    assert router.get("/whoami").json() == {"name": None, "role": "admin", "via": "open"}
    assert router.post(f"{path}/pass").json()["url"] == f"{router.url}{path}/http/"
    shared = router.post(f"{path}/share", {})
    assert (shared.status_code, shared.json()["code"]) == (409, "access_open")
    router.post(f"{path}/remove")


# -- tokens -----------------------------------------------------------------------------------------------------


def everywhere(it: Guarded, token: str) -> set[int]:
    """What workers answer to a token; each new connection may go to another one."""
    return {it.ask(token, "GET", "/whoami").status_code for _ in range(8 * WORKERS)}


def test_a_token_made_over_http_counts_in_all_workers_at_once_and_until_it_is_revoked(it: Guarded) -> None:
    answer = it.ask("admin", "POST", "/tokens", json={"name": "guest", "role": "viewer", "expires": 3600})
    assert answer.status_code == 201
    made = answer.json()
    it.texts.append(made["token"])
    assert (made["name"], made["role"]) == ("guest", "viewer")
    assert everywhere(it, made["token"]) == {200}
    listed = it.ask("admin", "GET", "/tokens")
    assert made["token"] not in listed.text
    (entry,) = [token for token in listed.json()["tokens"] if token["id"] == made["id"]]
    assert entry == {key: made[key] for key in ("id", "name", "role", "created", "expires")}
    assert it.ask("admin", "DELETE", f"/tokens/{made['id']}").status_code == 204
    assert everywhere(it, made["token"]) == {401}
    assert it.ask("admin", "DELETE", f"/tokens/{made['id']}").status_code == 404


def test_a_repeated_request_makes_no_second_token(it: Guarded) -> None:
    key, body = {"Idempotency-Key": "a token"}, {"name": "twice", "role": "viewer"}
    made = it.ask("admin", "POST", "/tokens", json=body, headers=key).json()
    it.texts.append(made["token"])
    repeated = it.ask("admin", "POST", "/tokens", json=body, headers=key)
    assert (repeated.status_code, repeated.json()["code"]) == (409, "token_exists")
    assert repeated.json()["made"] == made["id"]


@pytest.mark.parametrize(
    "body",
    [{"name": "a b", "role": "user"}, {"name": "a", "role": "root"}, {"name": "a", "role": "user", "expires": 0}, {}],
)
def test_a_token_that_makes_no_sense_is_refused(it: Guarded, body: dict[str, Any]) -> None:
    assert it.ask("admin", "POST", "/tokens", json=body).status_code == 400


def test_a_token_expires(it: Guarded) -> None:
    made = it.ask("admin", "POST", "/tokens", json={"name": "brief", "role": "viewer", "expires": 2}).json()
    it.texts.append(made["token"])
    assert it.ask(made["token"], "GET", "/info").status_code == 200
    wait_until(lambda: everywhere(it, made["token"]) == {401}, what="the token has expired")


def test_a_token_counts_nowhere_once_the_command_has_revoked_it(it: Guarded) -> None:
    made = it.make("ann", "user")
    it.texts.append(made["token"])
    assert everywhere(it, made["token"]) == {200}
    listed = token_command(it.directory, "list")
    assert made["id"] in listed.stdout
    assert made["token"] not in listed.stdout
    assert token_command(it.directory, "revoke", made["id"]).returncode == 0
    assert everywhere(it, made["token"]) == {401}
    again = token_command(it.directory, "revoke", made["id"])
    assert again.returncode == 2
    assert "there is no token" in again.stderr


# -- what goes on for long --------------------------------------------------------------------------------------


def ends(read: Callable[[], Any]) -> threading.Thread:
    """A thread that reads until the other side ends it."""

    def run() -> None:
        try:
            while read():
                pass
        except (requests.RequestException, ConnectionClosed, OSError, AttributeError):
            return  # AttributeError: what urllib3 reads from when the test closes the response

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_what_is_open_ends_when_the_token_is_revoked(it: Guarded) -> None:
    made = it.make("user", "user")  # the same owner, another token
    it.texts.append(made["token"])
    silent = it.job("user", "sleep", "1000", port_expected_count=0)
    sockets = it.job("user", sys.executable, WEBSOCKETS, expose={"port": "assign"})
    url = it.router.url.replace("http://", "ws://") + f"{sockets}/http/echo"

    def open_all(token: str, stack: ExitStack) -> list[threading.Thread]:
        bearer = {"Authorization": f"Bearer {token}"}
        websocket = stack.enter_context(connect(url, additional_headers=bearer))
        websocket.send("hello")
        assert websocket.recv(timeout=10) == "hello"
        sse = {"Accept": "text/event-stream"}
        events = it.ask(token, "GET", "/events", stream=True, headers=sse)
        log = it.ask(token, "GET", f"{silent}/logs/stdout?follow=1", stream=True, headers=sse)
        raw = stack.enter_context(Raw(it.router.url, 60))
        raw.request("GET", f"{sockets}/tcp/http", f"Authorization: Bearer {token}\r\n{TCP}")
        assert b" 101 " in raw.read_until(b"\r\n\r\n")
        tcp = stack.enter_context(connect(url.replace("/http/echo", "/tcp/http"), additional_headers=bearer))
        assert (events.status_code, log.status_code) == (200, 200)
        waiting = ends(lambda: it.ask(token, "POST", f"{silent}/wait").status_code == 200)
        streams = [stack.enter_context(answer).iter_content(1) for answer in (events, log)]
        readers = [ends(partial(next, stream, b"")) for stream in streams]
        both = [ends(partial(one.recv)) for one in (websocket, tcp)]
        return [*both, ends(lambda: bool(raw.read_to_end())), *readers, waiting]

    with ExitStack() as stack:
        kept, ended = open_all(it.tokens["user"], stack), open_all(made["token"], stack)
        assert it.ask("admin", "DELETE", f"/tokens/{made['id']}").status_code == 204
        for thread in ended:
            thread.join(15)
        assert not any(thread.is_alive() for thread in ended)
        assert all(thread.is_alive() for thread in kept)
    for path in (silent, sockets):
        it.ask("user", "POST", f"{path}/remove")


# -- starting ---------------------------------------------------------------------------------------------------


def test_the_first_token_on_loopback_closes_the_router(launch: Callable[..., Any]) -> None:
    router: Router = launch(start_router, workers=WORKERS)
    assert router.get("/info").status_code == 200
    made = router.post("/tokens", {"name": "root", "role": "admin", "expires": None})
    assert made.status_code == 201, made.text
    token = {"Authorization": f"Bearer {made.json()['token']}"}
    for _ in range(8 * WORKERS):
        assert router.get("/info").status_code == 401
        assert router.get("/info", headers=token).status_code == 200
        assert router.get("/healthz").status_code == 200
    assert router.post(f"/tokens/{made.json()['id']}", headers=token).status_code == 405
    answer = requests.delete(f"{router.url}/tokens/{made.json()['id']}", headers=token, timeout=30)
    assert answer.status_code == 204, "one may revoke one's own token"
    assert router.get("/info").status_code == 401, "revoking the last token opens nothing"
    made_again = new_token(router.directory, "root", "admin")
    answer = router.post("/shutdown", headers={"Authorization": f"Bearer {made_again['token']}"})
    assert answer.status_code == 200
    wait_until(lambda: router.popen.poll() is not None, what="the router stops")


def test_other_machines_are_served_once_there_is_a_token(work_dir: Path, launch: Callable[..., Any]) -> None:
    directory = work_dir / "start_router0"
    sets = {"control.interface": "0.0.0.0", "control.port": free_port(), "state.dir": str(directory / "state")}
    argv = [sys.executable, "-m", "prouter", "up"]
    for key, value in sets.items():
        argv += ["--set", f"{key}={value!r}"]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "prouter token create --role admin NAME" in refused.stderr
    token = new_token(directory, "root", "admin")["token"]
    router: Router = launch(start_router, workers=1, **sets)
    url = f"http://127.0.0.1:{sets['control.port']}"
    assert requests.get(f"{url}/info", timeout=30).status_code == 401
    assert requests.get(f"{url}/info", headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 200
    assert router.popen.poll() is None


@needed("nginx")
def test_tokens_pass_through_nginx(work_dir: Path, launch: Callable[..., Any]) -> None:
    """As docs/deployment-nginx.md says: without nginx's own passwords, and with the line of the map removed."""
    directory = work_dir / "start_router0"
    token = new_token(directory, "ann", "viewer")["token"]
    log = work_dir / "audit.log"
    sets = {"control.trusted_proxies": ("127.0.0.1/32",), "audit.file": str(log)}
    router: Router = launch(start_router, workers=1, **sets)

    def pass_passwords(main: Path) -> None:
        site = main.parent / "conf.d" / "prouter.conf"
        lines = site.read_text().splitlines(keepends=True)
        kept = [line for line in lines if "basic" not in line or "auth_basic" in line]
        assert len(kept) == len(lines) - 1
        site.write_text("".join(kept))

    port = free_port()
    nginx = Nginx(work_dir / "nginx", router.url.removeprefix("http://"), port, adapt=pass_passwords)
    try:
        url = f"http://127.0.0.1:{port}"
        assert requests.get(f"{url}/whoami", timeout=30).status_code == 401
        bearer = requests.get(f"{url}/whoami", headers={"Authorization": f"Bearer {token}"}, timeout=30)
        basic = requests.get(f"{url}/whoami", auth=("anybody", token), timeout=30)
        assert bearer.json() == basic.json() == {"name": "ann", "role": "viewer", "via": "token"}
        refused = requests.post(f"{url}/jobs/run", json={}, auth=("anybody", token), timeout=30)
        assert refused.status_code == 403
    finally:
        nginx.close()
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert (line["operation"], line["name"], line["status"]) == ("run", "ann", 403)
    assert (line["from"], line["forwarded_for"]) == ("127.0.0.1", "127.0.0.1")


def test_a_reload_changes_the_tokens_of_the_configuration(work_dir: Path) -> None:
    file = work_dir / "router.yaml"

    def configure(token: str, role: str) -> None:
        digest = hashlib.sha256(token.encode()).hexdigest()
        file.write_text(
            f"control: {{port: 0, drain_timeout: 1, tokens: ['ci:{role}:sha256:{digest}']}}\n"
            f"server: {{port: 0}}\nstate: {{dir: {work_dir}/state, run_dir: {work_dir}/run}}\n"
        )

    configure("the first", "admin")
    router = Process([sys.executable, "-m", "prouter", "up", "--config", str(file)], work_dir / "router.log")
    try:
        url = router.wait_line(r"^ready control=(http://\S+)")[1]

        def ask(token: str, method: str, path: str) -> requests.Response:
            return requests.request(method, url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30)

        assert requests.get(f"{url}/info", timeout=30).status_code == 401
        assert ask("the first", "GET", "/whoami").json() == {"name": "ci", "role": "admin", "via": "token"}
        (listed,) = ask("the first", "GET", "/tokens").json()["tokens"]
        assert listed == {"id": "config-1", "name": "ci", "role": "admin", "created": None, "expires": None}
        refused = ask("the first", "DELETE", "/tokens/config-1")
        assert refused.status_code == 409
        assert "control.tokens" in refused.json()["detail"]
        configure("the second", "viewer")
        router.popen.send_signal(signal.SIGHUP)

        def changed() -> bool:
            tokens = ("the first", "the second") * 8
            return [ask(token, "GET", "/whoami").status_code for token in tokens] == [401, 200] * 8

        wait_until(changed, 60, what="all workers know the second token only")
    finally:
        router.stop()


@needed("curl")
def test_the_examples_of_the_page_run(work_dir: Path, launch: Callable[..., Any], tmp_path: Path) -> None:
    router: Router = launch(start_router, workers=WORKERS)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    command = f"{sys.executable} -m prouter token --set state.dir={str(router.directory / 'state')!r}"
    blocks[0] = blocks[0].replace("prouter token", command)
    done = subprocess.run(
        ["bash", "-c", "set -eu -o pipefail\n" + "\n".join(blocks)],
        cwd=tmp_path,
        env={"ROUTER": router.url, "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('{"name":"alice","role":"admin","via":"token"}') == 2
    assert (tmp_path / "admin.token").read_text().startswith("prt_")
    assert '"name":"ci","role":"user"' in done.stdout


# -- secrets ----------------------------------------------------------------------------------------------------


def test_tokens_are_seen_nowhere(it: Guarded) -> None:
    """Runs last of those that use this router: nothing that happened before may have left a token anywhere."""
    haystack = [path.read_bytes() for path in it.directory.rglob("*") if path.is_file()]
    haystack += [it.ask("admin", "GET", path).content for path in ("/metrics", "/tokens", "/jobs?limit=1000", "/info")]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            haystack.append(process.read_bytes())
        except OSError:
            continue  # it has ended
    for text in it.texts:
        for needle in (text.encode(), base64.b64encode(f"me:{text}".encode())):
            assert not any(needle in hay for hay in haystack)
