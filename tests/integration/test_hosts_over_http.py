"""DNS rebinding: a page whose name was re-pointed at the router cannot use the API; pages of jobs are served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.processes import Agent, Router, start_agent, start_router
from tests.support.raw_http import exchange

EVIL = "evil.example:8888"
SERVER = Path(__file__).parents[1] / "jobs" / "fast_server.py"
REBOUND = {"Host": EVIL, "Origin": f"http://{EVIL}", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def fenced(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        router = start_router(
            short_dir / "fenced",
            workers=1,
            control__hosts=["router.example.org", "*.lab.example.org"],
            control__job_domain="jobs.example.org",
        )
        stack.callback(router.stop)
        agent = start_agent(short_dir / "fenced-agent", router, control__enabled=True)
        stack.callback(agent.stop)
        yield router, agent


def test_a_rebound_page_runs_nothing(fenced: tuple[Router, Agent]) -> None:
    router, _ = fenced
    before = router.get("/jobs?state=NEW,RUNNING,FINISHED").json()["jobs"]
    answer = router.post("/jobs/run", {"name": "x", "args": ["id"], "port_expected_count": 0}, headers=REBOUND)
    assert answer.status_code == 421
    assert answer.headers["X-PRouter-Error"] == "unknown_host"
    assert "'evil.example:8888'" in answer.json()["detail"]
    assert "control.hosts" in answer.json()["detail"]
    assert router.get("/jobs?state=NEW,RUNNING,FINISHED").json()["jobs"] == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "target", ["/", "/info", "/jobs", "/events", "/healthz", "/metrics", "/openapi.json", "/nothing"]
)
def test_nothing_is_told_under_a_foreign_name(fenced: tuple[Router, Agent], method: str, target: str) -> None:
    answer, cut = exchange(fenced[0].url, method, target, version="1.0", headers="Host: evil.example\r\n", host="")
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert not cut


def test_a_websocket_and_an_absolute_target_are_no_way_round(fenced: tuple[Router, Agent]) -> None:
    upgrade = f"Host: {EVIL}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    assert exchange(fenced[0].url, "GET", "/events", headers=upgrade, host="")[0].startswith(b"HTTP/1.1 421 ")
    absolute, _ = exchange(fenced[0].url, "GET", f"http://{EVIL}/info")
    assert absolute.startswith(b"HTTP/1.1 421 ")
    claimed = f"Host: {EVIL}\r\nX-Forwarded-Host: localhost\r\n"
    assert exchange(fenced[0].url, "GET", "/info", headers=claimed, host="")[0].startswith(b"HTTP/1.1 421 ")


def test_a_jobs_files_and_logs_are_closed_and_its_own_pages_open(fenced: tuple[Router, Agent]) -> None:
    router, agent = fenced
    job = router.serve(agent.uid, SERVER)
    for path in ("/file/", "/archive", "/logs/stdout", "/info", "/wsconnect"):
        assert router.get(job + path, headers=REBOUND).status_code == 421
    assert router.get(job + "/http/", headers=REBOUND).status_code == 200


@pytest.mark.parametrize(
    "host", ["router.example.org", "a.lab.example.org:443", "jobs.example.org", "127.9.9.9", "[::1]:5"]
)
def test_names_of_the_router_are_served(fenced: tuple[Router, Agent], host: str) -> None:
    assert fenced[0].get("/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["192.0.2.7:8888", "[2001:db8::7]", "0.0.0.0"])
def test_a_router_on_loopback_has_no_address_of_another_machine(fenced: tuple[Router, Agent], host: str) -> None:
    assert fenced[0].get("/info", headers={"Host": host}).status_code == 421


def test_a_browser_gets_a_page_that_names_the_key(fenced: tuple[Router, Agent]) -> None:
    answer = fenced[0].get("/", headers={"Host": "gpu.example", "Accept": "text/html,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (421, "text/html; charset=utf-8")
    assert "control.hosts" in answer.text


def test_the_agents_own_api_is_closed_too(fenced: tuple[Router, Agent]) -> None:
    agent = fenced[1]
    url = agent.ready.rpartition("control=")[2]
    assert exchange(url, "GET", "/info")[0].startswith(b"HTTP/1.1 200 ")
    closed, _ = exchange(url, "GET", "/info", headers=f"Host: {EVIL}\r\n", host="")
    assert closed.startswith(b"HTTP/1.1 421 ")


def test_a_page_of_another_site_removes_no_file(fenced: tuple[Router, Agent]) -> None:
    router, agent = fenced
    job = router.create(agent.uid)
    assert router.post(job + "/file/a.txt", headers={"Content-Type": "application/octet-stream"}).status_code == 200
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
    ):
        answer = router.get(job + "/file/a.txt?remove=1", headers=foreign)
        assert (answer.status_code, answer.headers["X-PRouter-Error"]) == (403, "cross_site")
        assert router.get(job + "/file/a.txt", headers=foreign).status_code == 200
    assert router.get(job + "/file/a.txt?remove=1").status_code == 200
    assert router.get(job + "/file/a.txt").status_code == 404
