"""No secret gets into a log, a response, an event, a metric, a list of processes, or a file that need not have it.

A router of two workers and its agents get a different secret in every place where one may be, by requests of all kinds,
refused and malformed ones among them. Then everything they wrote and said is searched.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.planted import Planted, processes_below
from tests.support.processes import Agent, Router, start_agent, start_joined, start_router, wait_until
from tests.support.raw_http import Raw

WEBSOCKETS = str(Path(__file__).parents[1] / "jobs" / "websocket_server.py")
PATHS = ["/info", "/jobs", "/nothing", "/jobs/x/y/http/", "/jobs/x/y/info", "/jobs/x/y/file/z", "/metrics", "/tokens",
         "/jobs/create", "/jobs/x/y/wsconnect/p", "/healthz"]  # fmt: skip
HEADS = [
    "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization : Bearer {}\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \x01{}\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\nAuthorization: Basic x\r\n\r\n",
    "GET /info?token={} HTTP/9.1\r\nHost: 127.0.0.1\r\n\r\n",
    "GET /info?token={} x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "GET /jobs/x/y/http/?token={} HTTP/1.1\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: somebody:{}@127.0.0.1\r\n\r\n",
    "GET http://somebody:{}@127.0.0.1/info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "GET ftp://somebody:{}@127.0.0.1/info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "CONNECT somebody:{}@127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "POST /jobs/create HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
    "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nReferer: http://127.0.0.1/jobs/a/b/http/?token={}\r\n\r\n",
    "{}\r\n\r\n",
]  # fmt: skip
QUERIES = ["/jobs?limit={}", "/jobs?cursor={}", "/jobs?state={}", "/events?after={}", "{job}/info?usage={}",
           "{job}/logs/stdout?offset={}", "{job}/file/x?remove={}", "{job}/archive?format={}"]  # fmt: skip
STARTS: list[dict[str, Any]] = [
    {"args": [], "env": {"A": "{}"}},
    {"args": ["true"], "env": {"A": ["{}"]}},
    {"args": ["true"], "env": {"A=B": "{}"}},
    {"args": ["true"], "env": "{}"},
    {"args": ["true"], "env": {"A": "\0{}"}},
    {"args": ["true"], "limits": {"memory": "{}"}},
    {"args": ["true"], "expose": {"port": "assign", "preset": "{}"}},
    {"args": ["true"], "password": "{}"},
    {"args": ["/nonexistent"], "env": {"A": "{}"}, "port_expected_count": 0},
]
URLS = ["ws://somebody:{}@127.0.0.1:9/x", "ws://127.0.0.1:9/x?token={}", "ws://127.0.0.1:9/x#{}", "ws://[{}", "{}",
        "ftp://somebody:{}@127.0.0.1/", "ws://127.0.0.1:{}/", "ws://somebody:{}@nowhere.invalid/"]  # fmt: skip


def filled(body: Any, secret: str) -> Any:
    """The body with the secret in its place."""
    return json.loads(json.dumps(body).replace("{}", secret))


class Stand:
    """A router, two agents, a token of each role, and everything that the router answered.

    Attributes:
        answers: by request, status line and fields and body.
    """

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self.planted, self.directory = Planted(), directory
        self.answers: list[tuple[str, bytes]] = []
        self.syslog: list[bytes] = []
        self._collect_syslog(held)
        agent_token = self.planted.new("token of an agent")
        self.router: Router = start_router(directory / "router", workers=2, **{
            "audit.file": str(directory / "audit.log"), "audit.syslog": str(directory / "syslog"), "log.level": "debug",
            "control.hold": 0.5, "control.sandbox_shares": True, "server.curve": True,
            "server.accept_tokens": [agent_token],
        })  # fmt: skip
        held.callback(self.router.stop)
        key = {"client.router_key": self.router.key_file, "log.level": "debug"}
        self.agent: Agent = start_agent(directory / "agent", self.router, **{**key, "client.token": agent_token})
        held.callback(self.agent.stop)
        self.joined = start_joined(directory / "joined", "--join", self._invitation(), **{"log.level": "debug"})
        held.callback(self.joined.stop)
        self.admin = self._token("root", "admin", None)
        self.viewer, self.user = (self._token(role, role, self.admin) for role in ("viewer", "user"))

    def _collect_syslog(self, held: ExitStack) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(self.directory / "syslog"))
        held.callback(listener.close)

        def collect() -> None:
            with suppress(OSError):
                while data := listener.recv(65536):
                    self.syslog.append(data)

        threading.Thread(target=collect, daemon=True).start()

    def _invitation(self) -> str:
        sets = {"state.dir": str(self.router.directory / "state"), "server.curve": True}
        argv = [sys.executable, "-m", "prouter", "invite", "--json", "--many", "--host", self.router.agents]
        argv += [part for key, value in sets.items() for part in ("--set", f"{key}={value!r}")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        url: str = json.loads(done.stdout)["url"]
        found = re.search("token=([^&]+)", url)
        assert found is not None
        self.planted.add("token of an invitation", found[1])
        return url

    def _token(self, name: str, role: str, by: str | None) -> str:
        fields = {} if by is None else {"Authorization": f"Bearer {by}"}
        text: str = self.router.post("/tokens", {"name": name, "role": role}, headers=fields).json()["token"]
        self.planted.add(f"token of the {role}", text)
        return text

    def ask(self, method: str, path: str, who: str | None = None, **options: Any) -> requests.Response:
        """Send a request, as the holder of a token or without one, and keep the response."""
        fields = {"Authorization": f"Bearer {who}"} if who else {}
        fields |= options.pop("headers", {})
        url = self.router.url + path
        got = requests.request(method, url, headers=fields, timeout=60, allow_redirects=False, **options)
        self.answers.append((f"{method} {path}", f"{got.status_code} {got.headers}".encode() + got.content))
        return got

    def send(self, head: str) -> None:
        """Send raw bytes and keep what comes back."""
        with Raw(self.router.url) as raw:
            raw.send(head.encode("latin-1"))
            raw.sock.shutdown(socket.SHUT_WR)
            self.answers.append((head, raw.read_to_end()))

    # -- requests with secrets ----------------------------------------------------------------------------------

    def drive(self) -> None:
        """Send requests of all kinds with secrets in them."""
        self.present_wrong_credentials()
        self.put_secrets_into_urls()
        for head in HEADS:
            self.send(head.replace("{}", self.planted.new(head)))
        with ThreadPoolExecutor(1) as pool:  # ten seconds until the address is given up
            dialling = pool.submit(self.create_jobs)
            self.use_a_job()
            dialling.result()
        self.sign_in()
        self.fail_to_start()
        for path in ("/info", "/jobs", "/connections", "/metrics", "/whoami", "/openapi.json", "/readyz", "/"):
            self.ask("GET", path, self.viewer)
        self.ask("GET", "/tokens", self.admin)
        self.read_events()

    def present_wrong_credentials(self) -> None:
        for form in ("Bearer {}", "bearer  {} ", "{}", "Digest response={}", "Bearer {} x", "Basic {}"):
            value = form.replace("{}", self.planted.new(form))
            assert self.ask("GET", "/info", headers={"Authorization": value}).status_code == 401
        wrong = self.planted.basic("encoded wrong password", self.planted.new("wrong password"))
        right = self.planted.basic("encoded token", self.user)
        assert self.ask("GET", "/info", headers={"Authorization": wrong}).status_code == 401
        assert self.ask("GET", "/whoami", headers={"Authorization": right}).status_code == 200

    def put_secrets_into_urls(self) -> None:
        new = self.planted.new
        for token in (self.user, self.viewer):  # in the path, where none belongs
            for path in (f"/info/{token}", f"/tokens/{token}", f"/jobs/{token}/x/info", f"/jobs/x/{token}/http/"):
                for method in ("GET", "DELETE"):
                    self.ask(method, path, self.admin)
        for path in PATHS:
            for who in (None, self.user):
                fields = {"Cookie": f"session={new('cookie ' + path)}", "X-Api-Key": new("field " + path)}
                self.ask("GET", f"{path}?token={new('query ' + path)}", who, headers=fields)
                self.ask("POST", f"{path}?token={new('query ' + path)}", who, data=b'{"a": ' + new("body").encode())
                self.ask("DELETE", f"{path}?access_token={new('query ' + path)}", who, headers=fields)

    def create_jobs(self) -> None:
        new = self.planted.new
        by_address = {"type": "address", "address": "127.0.0.1:9", "token": new("token of an agent that is dialled")}
        agents: list[Any] = [
            by_address, {**by_address, "address": f"somebody:{new('password in an address')}@127.0.0.1:9"},
            {"type": new("type"), "uid": "x"}, {"type": "uid", "uid": "none"}, new("agent"),
        ]  # fmt: skip
        for agent in agents:
            key = {"Idempotency-Key": new("key")}
            self.ask("POST", "/jobs/create", self.user, json={"name": "x", "agent": agent}, headers=key)
        self.ask("POST", "/tokens", self.admin, json={"name": f"a {new('name of a token')}", "role": "user"})
        self.ask("POST", "/tokens", self.admin, json={"name": "a", "role": new("role")})

    def job(self, name: str) -> str:
        body = {"name": name, "agent": {"type": "uid", "uid": self.agent.uid}}
        path: str = self.ask("POST", "/jobs/create", self.user, json=body).json()["path"]
        return path

    def use_a_job(self) -> None:
        new, job = self.planted.new, self.job("websockets")
        for start in STARTS[:-1]:
            assert self.ask("POST", f"{job}/start", self.user, json=filled(start, new(str(start)))).status_code == 400
        start = {"args": [sys.executable, WEBSOCKETS], "env": {"A": new("env")}, "expose": {"port": "assign"}}
        assert self.ask("POST", f"{job}/start", self.user, json=start).status_code == 200
        fields = {"Cookie": f"a={new('cookie')}", "X-Secret": new("field"), "Authorization": f"Bearer {self.user}"}
        self.ask("GET", f"{job}/http/seen?token={new('query of a job')}", headers=fields)
        self.ask("GET", f"{job}/http/seen?token={new('query of a refused request')}", self.viewer)
        self.ask("POST", f"{job}/http/echo", self.user, data=new("body for a job").encode())
        self.ask("PUT", f"{job}/file/a?x={new('query of a file')}", self.user, data=new("file").encode())
        self.ask("POST", f"{job}/archive", self.user, data=new("archive").encode())
        self.ask("POST", f"{job}/signal", self.user, json={"signal": new("signal")})
        self.ask("POST", f"{job}/stop", self.user, json={"grace": new("grace")})
        for query in QUERIES:
            self.ask("GET", query.replace("{}", new(query)).replace("{job}", job), self.user)
        self.share(job)
        own = self.router.url.replace("http", "ws") + f"{job}/http/echo"
        for url in (*URLS, f"{own}?token={{}}"):
            target = f"{job}/wsconnect/silent?token={new('query of a bridge')}"
            fields = {"Cookie": f"c={new('cookie of a bridge')}", "X-Secret": new("field of a bridge")}
            self.ask("POST", target, self.user, json={"url": url.replace("{}", new(url))}, headers=fields)
            for who in (self.viewer, self.user):
                self.ask("GET", f"{job}/wsconnect", who)

    def share(self, job: str) -> None:
        """Make a share link and a pass, and follow them and such that do not count."""
        fields = {"Authorization": f"Bearer {self.user}", "Idempotency-Key": self.planted.new("key of a link")}
        link = self.router.post(f"{job}/share", {"name": "link"}, headers=fields).json()["url"]
        entry = self.router.post(f"{job}/pass", headers={"Authorization": f"Bearer {self.user}"}).json()["url"]
        for what, url in (("share link", link), ("pass", entry)):
            code = re.split("code=", url)[1].partition("&")[0]
            self.planted.add(f"code of a {what}", code)
            place = url.removeprefix(self.router.url)
            for path in (
                place,
                place.replace(job, "/jobs/x/y"),
                place.replace("?", "/?"),
                place.replace("code=", "x="),
            ):
                self.router.get(path, allow_redirects=False)
                self.ask("POST", path)
            self.ask("GET", place.replace(code, self.planted.new(f"wrong code of a {what}")))
        for browser in ({}, {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}):
            got = self.router.get(link.removeprefix(self.router.url), allow_redirects=False, headers=browser)
            value = got.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
            self.planted.add("cookie of a visitor", value)
            where = got.headers["Location"].removeprefix(self.router.url)
            assert (value in where) is bool(browser), "in a browser, the pass is in the path"
            cookie = {"Cookie": f"prouter_pass={value}"}
            self.router.get(f"{where}seen?token=1", headers=cookie)
            for path in (
                f"{where}nothing",
                where.replace(job, "/jobs/x/y"),
                where[:-1],
                where.replace("shared", "share"),
            ):
                self.router.get(path, headers=cookie, allow_redirects=False)
                self.router.post(path, {}, headers={**cookie, "Referer": f"{self.router.url}{where}"})
            self.router.get("/static/x.js", headers={"Referer": f"{self.router.url}{where}"})
        self.ask("GET", f"{job}/share", self.user)

    def sign_in(self) -> None:
        """Sign in at the dashboard, with a wrong token and a right one, and out again."""
        wrong, there = self.planted.new("wrong token of a form"), self.planted.new("query of a page to go to")
        for form in ({"token": wrong}, {"token": wrong, "proof": wrong}, {"proof": wrong}, {wrong: wrong}, {}):
            self.ask("POST", "/sign-in", data={**form, "next": f"/?token={there}"}, headers={"Accept": "text/html"})
        self.router.get(f"/sign-in?next=/?token={there}")
        done = self.router.post("/sign-in", data={"token": self.viewer}, allow_redirects=False)
        assert done.status_code == 303
        session = done.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
        self.planted.add("cookie of a session", session)
        cookie = {"Cookie": f"prouter_session={session}"}
        for path in ("/whoami", "/jobs", "/", "/nothing", "/tokens"):
            self.ask("GET", path, headers=cookie)
        self.ask("GET", "/whoami", headers={"Cookie": f"prouter_session={session[:-4]}0000"})
        self.ask("POST", "/sign-out", headers=cookie)

    def fail_to_start(self) -> None:
        """Start jobs that fail; what one of them says then is for those who may read its log."""
        job = self.job("not found")
        self.ask("POST", f"{job}/start", self.user, json=filled(STARTS[-1], self.planted.new("env of no program")))
        job, said = self.job("fails"), self.planted.new("stderr of a job that fails")
        start = {"args": ["sh", "-c", "echo $S >&2; exit 3"], "env": {"S": said}, "expose": {"port": "assign"}}
        headers = {"Authorization": f"Bearer {self.user}"}
        link = self.router.post(f"{job}/share", {"name": "link"}, headers=headers).json()["url"]
        self.planted.add("code of a link", link.rpartition("=")[2])
        assert said in self.router.post(f"{job}/start", start, headers=headers).json()["detail"]
        entered = requests.get(link, allow_redirects=False, timeout=30)
        visitor = {"Cookie": entered.headers["Set-Cookie"].partition(";")[0]}
        for accept in ("*/*", "text/html"):
            assert said in self.router.get(f"{job}/http/", headers={**headers, "Accept": accept}).text
            shown = self.ask("GET", f"{job}/http/", headers={**visitor, "Accept": accept})
            assert (shown.status_code, "end of its stderr" in shown.text) == (424, True)
        for path in (f"{job}/info", "/jobs"):
            assert said in self.router.get(path, headers=headers).text
            assert "end of its stderr" in self.ask("GET", path, self.viewer).text
        self.ask("POST", f"{job}/info", self.viewer)
        self.ask("POST", f"{job}/wait", self.viewer)
        assert said in self.read_events(self.user)

    def read_events(self, who: str = "") -> str:
        """Read all events so far, and keep them if they are a viewer's."""
        last = self.job("the last event").rpartition("/")[2]
        fields = {"Authorization": f"Bearer {who or self.viewer}"}
        lines: list[bytes] = []
        with requests.get(f"{self.router.url}/events?after=0", headers=fields, stream=True, timeout=30) as got:
            for line in got.iter_lines():
                lines.append(line)
                if last.encode() in line:
                    break
        if not who:
            self.answers.append(("GET /events", b"\n".join(lines)))
        return b"\n".join(lines).decode()


@pytest.fixture(scope="module")
def stand(short_dir: Path) -> Iterator[Stand]:
    directory = short_dir / "planted"
    directory.mkdir()
    with ExitStack() as held:
        stand = Stand(directory, held)
        stand.drive()
        yield stand


def test_no_log_holds_a_secret(stand: Stand) -> None:
    logs = [process.log for process in (stand.router, stand.agent, stand.joined)]
    for log in logs:
        assert b"event=" in log.read_bytes()
        assert stand.planted.found_in(log.read_bytes()) == []


def test_the_audit_log_holds_no_secret(stand: Stand) -> None:
    lines = (stand.directory / "audit.log").read_bytes()
    assert lines.count(b"\n") > 20
    assert stand.planted.found_in(lines) == []
    wait_until(lambda: len(stand.syslog) == lines.count(b"\n"))
    assert stand.planted.found_in(b"\n".join(stand.syslog)) == []


def test_no_response_holds_a_secret(stand: Stand) -> None:
    for request, answer in stand.answers:
        assert stand.planted.found_in(answer) == [], request
        assert not re.match(rb"500|HTTP/1.1 500", answer), request


def test_no_command_line_shows_a_secret(stand: Stand) -> None:
    pids = [pid for process in (stand.router, stand.agent, stand.joined) for pid in processes_below(process.pid)]
    assert len(pids) >= 8
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            assert stand.planted.found_in((entry / "cmdline").read_bytes()) == []


def test_files_hold_only_secrets_that_are_needed_to_connect(stand: Stand) -> None:
    needed = {
        "router/run/router.yaml": ["token of an agent"],
        "joined/state/routers.json": ["token of an invitation"],
    }
    directories = ("router/state", "router/run", "agent/state", "joined/state")
    for directory in directories:
        for path in (stand.directory / directory).rglob("*"):
            if not path.is_file():
                continue
            name = str(path.relative_to(stand.directory))
            told = [where.partition(": …")[0] for where in stand.planted.found_in(path.read_bytes())]
            told = [where for where in told if not where.startswith("stderr")]
            assert told == needed.get(name, []), name
            if told or path.suffix == ".key_secret":
                assert path.stat().st_mode & 0o077 == 0, name
    secret_keys = re.findall(
        rb'secret-key = "(.+)"', b"".join(path.read_bytes() for path in stand.directory.glob("*/state/keys/*_secret"))
    )
    assert len(secret_keys) == 3
    for written in (*stand.directory.glob("*/*.log"), stand.directory / "audit.log"):
        assert not any(key in written.read_bytes() for key in secret_keys)
    assert not any(key in answer for key in secret_keys for _, answer in stand.answers)
