"""Addresses of a job, from outside and from inside: missing slashes, host names of its own, local addresses, WebDAV."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Agent, Router, start_agent, start_router
from tests.support.raw_http import Raw

PYTHON = sys.executable
DOMAIN = "jobs.example.org"
UPGRADE = "Connection: Upgrade\r\nUpgrade: talk/1\r\n"

Start = Callable[..., str]


@pytest.fixture(scope="module")
def site(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    """A router with host names for jobs, and its agent."""
    router = start_router(short_dir / "addresses", workers=1, control__job_domain=DOMAIN)
    try:
        agent = start_agent(short_dir / "addresses-agent", router)
        try:
            yield router, agent
        finally:
            agent.stop()
    finally:
        router.stop()


@pytest.fixture
def start(site: tuple[Router, Agent], jobs: Path) -> Start:
    """Start a job server with arguments and ``expose``; the job's path."""

    def begin(*args: str, script: str = "prefix_server", **expose: Any) -> str:
        router, agent = site
        path = router.create(agent.uid, "addressed")
        router.start(path, [PYTHON, str(jobs / f"{script}.py"), *args], expose={"port": "assign", **expose})
        return path

    return begin


@pytest.fixture
def router(site: tuple[Router, Agent]) -> Router:
    return site[0]


def own_name(path: str) -> dict[str, str]:
    return {"Host": f"{path.rpartition('/')[2]}.{DOMAIN}"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("query", ["", "?", "?a=1&b=%2f/x"])
def test_the_missing_slash_of_a_job_is_added(start: Start, router: Router, method: str, query: str) -> None:
    path = start()
    with Raw(router.url) as raw:
        for _ in range(2):  # over one connection
            raw.request(method, f"{path}/http{query}")
            head = raw.read_until(b"\r\n\r\n").decode()
            assert head.startswith("HTTP/1.1 308 ")
            assert f"\r\nLocation: {path}/http/{query}\r\n" in head


def test_only_what_a_browser_loads_as_a_page_is_redirected(start: Start, router: Router) -> None:
    path = start()
    answer = router.post(f"{path}/http?a=1", {"a": 1}, allow_redirects=False)
    assert answer.json()["path"] == "/?a=1"
    kept = start("--prefix", "{base_url}", path="keep")
    assert router.get(f"{kept}/http", allow_redirects=False).json()["path"] == f"{kept}/http"
    corner = start(script="corner_server")
    with Raw(router.url) as raw:
        raw.request("GET", f"{corner}/http", UPGRADE)
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 404 "), "the job's own answer for its root"


def test_a_job_that_keeps_its_prefix_is_found_at_the_root_of_its_name(start: Start, router: Router) -> None:
    path = start("--prefix", "{base_url}", path="keep")
    answer = router.get("/?a=1", headers=own_name(path), allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (308, f"{path}/http/?a=1")
    assert router.get(answer.headers["Location"], headers=own_name(path)).json()["path"] == f"{path}/http/?a=1"
    assert router.post("/", {}, headers=own_name(path)).json()["path"] == f"{path}/http/"
    assert router.get("/elsewhere", headers=own_name(path)).status_code == 404, "the job's own business"


def test_a_stripped_job_may_name_its_prefix_under_its_own_name(start: Start, router: Router) -> None:
    path = start()
    for asked, seen in {
        "/": "/",
        "/x?y": "/x?y",
        f"{path}/http/x?y": "/x?y",
        f"{path}/http/": "/",
        f"{path}/http": "/",
        f"{path}/httpx": f"{path}/httpx",
        "/jobs/other/http/x": "/jobs/other/http/x",
    }.items():
        assert router.get(asked, headers=own_name(path)).json()["path"] == seen


@pytest.mark.parametrize("mode", ["strip", "keep"])
def test_upgrades_work_under_a_name_of_their_own(start: Start, router: Router, mode: str) -> None:
    path = start(script="corner_server", path="strip")
    with Raw(router.url) as raw:
        target = "/upgrade" if mode == "strip" else f"{path}/http/upgrade"
        raw.send(f"GET {target} HTTP/1.1\r\nHost: {own_name(path)['Host']}\r\n{UPGRADE}\r\nhello".encode())
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert raw.read_exactly(10) == b"firsthello"


@pytest.mark.parametrize("mode", ["strip", "keep"])
def test_a_job_may_be_spoken_to_under_its_local_address(start: Start, router: Router, mode: str) -> None:
    path = start(*(["--prefix", "{base_url}"] if mode == "keep" else []), path=mode, host="local")
    (port,) = router.get(f"{path}/info").json()["ports"]
    local = f"127.0.0.1:{port}"
    origin = router.url
    headers = {"Origin": origin, "Referer": f"{origin}{path}/http/page"}
    found = router.get(f"{path}/http/x", headers=headers).json()
    assert found["headers"]["host"] == local
    assert found["headers"]["origin"] == f"http://{local}"
    assert found["headers"]["referer"] == f"http://{local}" + ("/page" if mode == "strip" else f"{path}/http/page")
    assert found["headers"]["x-forwarded-host"] == router.url.removeprefix("http://")
    foreign = router.get(f"{path}/http/x", headers={"Origin": "https://evil.example"}).json()
    assert foreign["headers"]["origin"] == "https://evil.example"
    root = "" if mode == "strip" else f"{path}/http"
    to = f"http://{local}{root}/a"
    answer = router.get(f"{path}/http/redirect", params={"to": to}, allow_redirects=False)
    assert answer.headers["Location"] == f"{path}/http/a"
    own = {**own_name(path), "Origin": f"http://{own_name(path)['Host']}"}
    found = router.get(f"{root}/x", headers=own).json()
    assert (found["headers"]["host"], found["headers"]["origin"]) == (local, f"http://{local}")
    assert "host_mode" not in router.get(f"{path}/info").json()


def test_without_it_the_public_host_stays(start: Start, router: Router) -> None:
    found = router.get(f"{start()}/http/x", headers={"Origin": router.url}).json()["headers"]
    assert (f"http://{found['host']}", found["origin"]) == (router.url, router.url)


def test_info_tells_the_address_that_a_person_opens(start: Start, router: Router, site: tuple[Router, Agent]) -> None:
    path = start("--prefix", "{base_url}", path="keep")
    port = router.url.rpartition(":")[2]
    name = own_name(path)["Host"]
    for headers in ({}, {"Host": f"localhost:{port}"}):
        info = router.get(f"{path}/info", headers=headers).json()
        assert info["url"] == f"http://{name}:{port}/"
        assert info["base_url"] == f"{path}/http/"
    listed = next(job for job in router.get("/jobs").json()["jobs"] if job["path"] == path)
    assert listed["url"] == info["url"]
    page = router.get("/", headers={"Host": f"{name}:{port}"})
    assert page.json()["path"] == info["base_url"], "the page that is found there"
    without = router.create(site[1].uid)
    assert router.get(f"{without}/info").json()["url"] is None


def test_jobs_may_be_served_under_their_own_names_alone(launch: Callable[..., Any], jobs: Path) -> None:
    alone: Router = launch(start_router, workers=1, control__job_domain=DOMAIN, control__job_domain_only=True)
    agent: Agent = launch(start_agent, alone)
    paths = {mode: alone.serve(agent.uid, jobs / "corner_server.py", path=mode) for mode in ("strip", "keep")}
    port = alone.url.rpartition(":")[2]
    for mode, path in paths.items():
        name = f"http://{own_name(path)['Host']}:{port}"
        below = "" if mode == "strip" else f"{path}/http"
        for method in ("GET", "HEAD", "POST", "BREW"):
            for target in ("/record/x?y=%2f", "/", "?q", ""):
                with Raw(alone.url) as raw:
                    raw.request(
                        method, f"{path}/http{target}", "Content-Length: 2\r\n", b"ok", host=f"router.localhost:{port}"
                    )
                    head = raw.read_until(b"\r\n\r\n").decode()
                    assert head.startswith("HTTP/1.1 308 ")
                    there = below + target if (below + target).startswith("/") else f"/{target}"
                    assert f"\r\nLocation: {name}{there}\r\n" in head
    stripped = paths["strip"]
    assert alone.post("/record/x", {}, headers=own_name(stripped)).text == "recorded"
    with Raw(alone.url) as raw:
        raw.request("GET", f"{stripped}/http/upgrade", UPGRADE)
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert alone.get(f"{stripped}/info").json()["url"] == f"http://{own_name(stripped)['Host']}:{port}/"


def test_webdav_names_both_files_alike(start: Start, router: Router) -> None:
    path = start(script="corner_server")
    with Raw(router.url) as raw:
        raw.request(
            "MOVE",
            f"{path}/http/record/a",
            f"Destination: http://router.localhost{path}/http/record/b\r\nIf: <{path}/http/record/b> (<urn:x:1>)\r\n",
        )
        raw.read_until(b"recorded")
    seen = router.get(f"{path}/http/last").text
    assert seen.startswith("MOVE /record/a ")
    assert "\r\nDestination: http://router.localhost/record/b\r\n" in seen
    assert "\r\nIf: </record/b> (<urn:x:1>)\r\n" in seen


ANSWERS = {
    "Refresh": "3; url=/next",
    "Content-Location": "/there",
    "Link": '</a.css>; rel="preload, x"; title="</t>", <b>; rel=next',
}


def test_addresses_in_answers_go_under_the_prefix(start: Start, router: Router) -> None:
    path = start()
    answer = router.get(f"{path}/http/header", params=ANSWERS)
    below = f"{path}/http"
    assert answer.headers["Refresh"] == f"3; url={below}/next"
    assert answer.headers["Content-Location"] == f"{below}/there"
    assert answer.headers["Link"] == f'<{below}/a.css>; rel="preload, x"; title="</t>", <b>; rel=next'
    own = router.get("/header", params=ANSWERS, headers=own_name(path))
    assert {name: own.headers[name] for name in ANSWERS} == ANSWERS


def test_a_job_on_the_shared_name_has_no_say_in_the_origin(start: Start, router: Router) -> None:
    path = start()
    wide = {
        "Service-Worker-Allowed": "/",
        "Clear-Site-Data": '"storage"',
        "Alt-Svc": 'h3=":1"',
        "Strict-Transport-Security": "max-age=9",
    }
    assert not wide.keys() & router.get(f"{path}/http/header", params=wide).headers.keys()
    assert wide.items() <= dict(router.get("/header", params=wide, headers=own_name(path)).headers).items()


def test_what_clients_claim_of_themselves_is_dropped(start: Start, router: Router) -> None:
    claims = {"X-Forwarded-Ssl": "on", "X-Scheme": "https", "Front-End-Https": "on", "True-Client-IP": "6.6.6.6"}
    found = json.dumps(router.get(f"{start()}/http/x", headers={**claims, "X-Original-URL": "/6.6.6.6"}).json())
    assert "6.6.6.6" not in found
    assert not [name for name in claims if name.lower() in found]
