"""Unmodified servers under a job's path, with their redirects and cookies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Agent, Router, start_agent, start_router
from tests.support.raw_http import Raw

PYTHON = sys.executable


@pytest.fixture
def start(router: Router, agent: Agent, jobs: Path) -> Callable[..., str]:
    """Start ``prefix_server.py`` with arguments and ``expose``; the job's path."""

    def begin(*args: str, **expose: Any) -> str:
        path = router.create(agent.uid, "exposed")
        router.start(path, [PYTHON, str(jobs / "prefix_server.py"), *args], expose=expose)
        return path

    return begin


def seen(router: Router, path: str, target: str = "/x?a=1") -> dict[str, Any]:
    """Return what the job saw of a request below its root."""
    answer = router.get(path + "/http" + target)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_job_of_the_original_runs_unchanged(router: Router, agent: Agent, jobs: Path) -> None:
    path = router.create(agent.uid)
    info = router.start(path, [PYTHON, str(jobs / "notify_server.py")])
    assert info["state"] == "RUNNING"
    assert router.get(path + "/http/").text == "hello from the job\n"
    assert router.get(path + "/http").text == "hello from the job\n"
    assert router.post(path + "/http/echo", {"a": 1}).json() == {"a": 1}
    environment = router.get(path + "/http/env").json()
    assert environment["DA__PAGENT__JOB_ID"] == path.rpartition("/")[2]
    assert router.get(path + "/http/cwd").text == environment["PROUTER_SANDBOX"]
    assert router.post(path + "/http/quit?code=7").text == "bye\n"
    ended = router.post(path + "/wait").json()
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("FINISHED", "exited", 7)


def test_any_server_runs_on_an_assigned_port(router: Router, agent: Agent) -> None:
    path = router.create(agent.uid)
    router.start(path, [PYTHON, "-m", "http.server", "{port}", "--bind", "127.0.0.1"], expose={"port": "assign"})
    requests.post(f"{router.url}{path}/file/hello.txt", data=b"hello", timeout=10).raise_for_status()
    assert router.get(path + "/http/hello.txt").text == "hello"


def test_a_port_of_the_jobs_choice_is_detected(start: Callable[..., str], router: Router) -> None:
    path = start("--port", "0", port="detect")
    assert seen(router, path)["path"] == "/x?a=1"
    assert len(router.get(path + "/info").json()["ports"]) == 1


def test_a_unix_socket_serves_as_well(router: Router, agent: Agent, jobs: Path) -> None:
    path = router.create(agent.uid)
    router.start(path, [PYTHON, str(jobs / "fast_server.py"), "--unix", "{socket}"], expose={"port": "unix"})
    assert router.get(path + "/http/bytes/1000000").content == router.get(path + "/http/bytes/1000000").content
    assert router.post(path + "/http/sink", data=b"x" * 3_000_000).text == "3000000"
    with Raw(router.url) as raw:
        raw.request("GET", path + "/http/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


def test_a_job_may_be_stripped_of_its_prefix_or_keep_it(start: Callable[..., str], router: Router) -> None:
    stripped = seen(router, start(port="assign", path="strip"))
    assert stripped["path"] == "/x?a=1"
    path = start("--prefix", "{base_url}", port="assign", path="keep")
    assert seen(router, path)["path"] == path + "/http/x?a=1"
    assert seen(router, path, "")["path"] == path + "/http"


def test_a_job_can_be_asked_for_its_prefix(start: Callable[..., str], router: Router, agent: Agent) -> None:
    path = start("--prefix", "{base_url}", port="assign", path="auto")
    assert seen(router, path)["path"] == path + "/http/x?a=1"
    path = router.create(agent.uid)
    args = [PYTHON, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    router.start(path, args, expose={"port": "assign", "path": "auto"})
    assert "Directory listing for /" in router.get(path + "/http/").text


@pytest.mark.parametrize(("ready", "status"), [("http", 503), ("/up", 200)])
def test_a_start_returns_when_the_server_is_as_ready_as_asked(
    start: Callable[..., str], router: Router, ready: str, status: int
) -> None:
    path = start("--delay", "0.3", "--unready", "1", port="assign", ready=ready)
    assert router.get(path + "/http/").status_code == status


def test_a_preset_sets_what_its_kind_of_server_reads(start: Callable[..., str], router: Router) -> None:
    path = start(preset="uvicorn")
    found = seen(router, path)
    assert found["env"]["UVICORN_ROOT_PATH"] == path + "/http"
    assert found["env"]["UVICORN_PORT"] == found["env"]["PORT"]
    path = start("--prefix", "{base_url}", preset="dash")
    found = seen(router, path)
    assert found["env"]["DASH_URL_BASE_PATHNAME"] == path + "/http/"
    assert found["path"] == path + "/http/x?a=1"


@pytest.mark.parametrize(
    ("args", "expose", "words"),
    [
        (
            [PYTHON, "-c", "import sys; print('cannot find my model', file=sys.stderr); sys.exit(3)"],
            {"port": "assign"},
            ["exit code 3", "cannot find my model"],
        ),
        (
            ["sh", "-c", "echo waiting for a licence >&2; sleep 60"],
            {"port": "assign", "timeout": 0.5},
            ["within 0.5 s", "waiting for a licence"],
        ),
        (["sh", "-c", "echo hm >&2; sleep 60"], {"port": "detect", "timeout": 0.5}, ["within 0.5 s", "hm"]),
        (["/no/such/program"], {"port": "unix"}, ["/no/such/program"]),
        (["sh", "-c", "echo oops >&2; kill -SEGV $$"], {"port": "notify"}, ["SIGSEGV", "oops"]),
    ],
    ids=["exits", "no port", "none detected", "no program", "killed"],
)
def test_a_start_that_fails_says_why(
    router: Router, agent: Agent, args: list[str], expose: dict[str, Any], words: list[str]
) -> None:
    path = router.create(agent.uid)
    answer = router.post(path + "/start", {"args": args, "env": {}, "expose": expose})
    assert answer.status_code == 502
    problem = answer.json()
    assert (problem["code"], problem["state"]) == ("start_failed", "FINISHED")
    for word in words:
        assert word in problem["detail"]
    info = router.get(path + "/info").json()
    assert (info["state"], info["reason"]) == ("FINISHED", "start_failed")
    assert words[-1] in info["error"]
    assert router.get(path + "/http/").status_code == 424


def test_redirects_and_cookies_stay_below_the_prefix(start: Callable[..., str], router: Router) -> None:
    path = start(port="assign")
    (port,) = router.get(path + "/info").json()["ports"]
    for sent, arrives in {
        "/login?next=/": f"{path}/http/login?next=/",
        "login": "login",
        f"http://127.0.0.1:{port}/a": f"{path}/http/a",
        f"{router.url}/a": f"{router.url}{path}/http/a",
        f"{path}/http/a": f"{path}/http/a",
        "https://elsewhere.example/a": "https://elsewhere.example/a",
        "//elsewhere.example/a": "//elsewhere.example/a",
    }.items():
        answer = router.get(f"{path}/http/redirect", params={"to": sent}, allow_redirects=False)
        assert answer.headers["Location"] == arrives
    cookie = router.get(f"{path}/http/cookie", params={"set": "a=1; Path=/; Domain=localhost; HttpOnly"})
    assert cookie.headers["Set-Cookie"] == f"a=1; Path={path}/http/; HttpOnly"


def test_a_browser_follows_a_redirect_and_keeps_its_cookie(start: Callable[..., str], router: Router) -> None:
    path, other = start(port="assign"), start(port="assign")
    with requests.Session() as browser:
        browser.get(f"{router.url}{path}/http/cookie?set=a%3D1%3B%20Path%3D/", timeout=10)
        answer = browser.get(f"{router.url}{path}/http/redirect?to=/deep/page", timeout=10)
        assert answer.json()["path"] == "/deep/page"
        assert answer.json()["headers"]["cookie"] == "a=1"
        assert "cookie" not in browser.get(f"{router.url}{other}/http/", timeout=10).json()["headers"]


@pytest.fixture(scope="module")
def hosted(short_dir: Path, jobs: Path) -> Any:
    """A router with host names for jobs, that trusts this machine as a proxy, and a job's path."""
    router = start_router(
        short_dir / "hosted",
        workers=1,
        control__job_domain="jobs.example.org",
        control__trusted_proxies=("127.0.0.0/8",),
        control__hold=0.2,
    )
    try:
        agent = start_agent(short_dir / "hosted-agent", router)
        try:
            yield router, router.serve(agent.uid, jobs / "prefix_server.py")
        finally:
            agent.stop()
    finally:
        router.stop()


def test_a_job_has_a_host_name_of_its_own(hosted: tuple[Router, str]) -> None:
    router, path = hosted
    uid = path.rpartition("/")[2]
    for host in (f"{uid}.jobs.example.org", f"{uid.upper()}.JOBS.example.org:8080"):
        found = router.get("/jobs/x?y", headers={"Host": host}).json()
        assert found["path"] == "/jobs/x?y"
        assert found["headers"]["x-forwarded-host"] == host
        assert found["headers"]["x-forwarded-prefix"] == ""
    headers = {"Host": f"{uid}.jobs.example.org"}
    answer = router.get("/redirect?to=/login", headers=headers, allow_redirects=False)
    assert answer.headers["Location"] == "/login"
    answer = router.get("/cookie", params={"set": "a=1; Path=/; Domain=example.org"}, headers=headers)
    assert answer.headers["Set-Cookie"] == "a=1; Path=/"
    with Raw(router.url) as raw:
        raw.send(
            f"GET http://{uid}.jobs.example.org/absolute HTTP/1.1\r\nHost: {uid}.jobs.example.org\r\n\r\n".encode()
        )
        raw.read_until(b"\r\n\r\n")
        assert json.loads(raw.read_until(b'"length": 0}'))["path"] == "/absolute"


@pytest.mark.parametrize("connection", ["", "0" * 32])
def test_a_job_is_not_found_under_another_connection(
    start: Callable[..., str], router: Router, connection: str
) -> None:
    job = start(port="assign").rpartition("/")[2]
    answer = router.get(f"/jobs/{connection}/{job}/http/x")
    assert answer.status_code == 404
    assert answer.headers["X-PRouter-Error"] == "not_found"


def test_a_host_name_of_no_job_is_a_404(hosted: tuple[Router, str]) -> None:
    router, _ = hosted
    for name in ("0" * 32, "www", ".", "a.b"):
        answer = router.get("/info", headers={"Host": f"{name}.jobs.example.org"})
        assert answer.status_code == 404, name
        assert f"job '{name}' is not found" in answer.json()["detail"]
        absolute = router.get("/info", headers={"Host": f"{name}.jobs.example.org.:80"})
        assert (absolute.status_code, absolute.json()["detail"]) == (404, answer.json()["detail"])
    assert router.get("/info", headers={"Host": "jobs.example.org"}).status_code == 200
    assert router.get("/info", headers={"Host": "example.org"}).status_code == 421


def test_a_proxy_that_changes_host_tells_the_jobs_name_otherwise(hosted: tuple[Router, str]) -> None:
    router, path = hosted
    name = f"{path.rpartition('/')[2]}.jobs.example.org"
    for told in ({"X-Forwarded-Host": name}, {"Forwarded": f'host="{name}"'}):
        found = router.get("/info", headers={"Host": "upstream", **told}).json()
        assert (found["path"], found["headers"]["x-forwarded-host"]) == ("/info", name)


def test_what_a_trusted_proxy_says_counts(hosted: tuple[Router, str]) -> None:
    router, path = hosted
    told = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "public.example.org",
        "X-Forwarded-Prefix": "/cluster",
    }
    found = router.get(path + "/http/", headers=told).json()["headers"]
    assert found["x-forwarded-for"] == "203.0.113.7, 127.0.0.1"
    assert found["x-forwarded-proto"] == "https"
    assert found["x-forwarded-host"] == "public.example.org"
    assert found["x-forwarded-port"] == "443"
    assert found["x-forwarded-prefix"] == f"/cluster{path}/http"
    assert found["forwarded"].startswith("for=203.0.113.7;host=public.example.org;proto=https, for=127.0.0.1;")
    for sent, arrives in {
        "/login": f"/cluster{path}/http/login",
        "http://public.example.org/a": f"https://public.example.org/cluster{path}/http/a",
    }.items():
        answer = router.get(f"{path}/http/redirect", params={"to": sent}, headers=told, allow_redirects=False)
        assert answer.headers["Location"] == arrives


def test_what_a_stranger_says_does_not(router: Router, start: Callable[..., str]) -> None:
    told = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "evil", "X-Forwarded-Prefix": "/evil", "X-Real-IP": "6"}
    headers = seen_with(
        router, start(port="assign"), {**told, "Forwarded": "for=6.6.6.6", "X_Forwarded_For": "6.6.6.6"}
    )
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert "6.6.6.6" not in json.dumps(headers)
    assert "evil" not in json.dumps(headers)


def seen_with(router: Router, path: str, headers: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = router.get(path + "/http/", headers=headers).json()["headers"]
    return found
