"""Requests for a job that is not ready, whose agent is away, or that has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.programs import needed
from tests.support.raw_http import Raw

HOLD = 2.0
PYTHON = sys.executable
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def place(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    """A router with one worker that holds requests for two seconds, and its agent."""
    with contextlib.ExitStack() as stack:
        router = start_router(short_dir / "hold", workers=1, control__hold=HOLD, server__heartbeat=0.2)
        stack.callback(router.stop)
        agent = start_agent(short_dir / "hold-agent", router)
        stack.callback(agent.stop)
        yield router, agent


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as found:
        yield found


def begin(router: Router, path: str, jobs: Path, *args: str) -> requests.Response:
    body = {"args": [PYTHON, str(jobs / "prefix_server.py"), *args], "env": {}, "expose": {"port": "assign"}}
    return router.post(path + "/start", body)


def check_refused(answer: requests.Response, code: str, state: str) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["X-PRouter-Error"] == code
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store, must-revalidate"
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["state"]) == (503, code, state)
    assert problem["request_id"] == answer.headers["X-Request-ID"]


def test_a_job_that_is_not_started_in_time_is_a_503(place: tuple[Router, Agent]) -> None:
    router, agent = place
    path = router.create(agent.uid)
    began = time.monotonic()
    check_refused(router.get(path + "/http/"), "job_starting", "NEW")
    assert HOLD <= time.monotonic() - began < HOLD + 1


def test_a_client_may_name_its_request(place: tuple[Router, Agent]) -> None:
    router, _ = place
    for given, used in (("mine-1:2.3_x", True), ("m" * 65, False), ("<b>", False)):
        answer = router.get("/jobs/no/job/http/", headers={"X-Request-ID": given})
        assert (answer.headers["X-Request-ID"] == given) is used
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_browsers_get_a_page_that_reloads_itself(place: tuple[Router, Agent]) -> None:
    router, agent = place
    path = router.create(agent.uid)
    answer = router.get(path + "/http/", headers=BROWSER)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert '<meta http-equiv="refresh"' in answer.text
    assert path.rpartition("/")[2] in answer.text
    head = requests.head(router.url + path + "/http/", headers=BROWSER, timeout=10)
    assert head.status_code == 503
    assert head.content == b""
    assert int(head.headers["Content-Length"]) > 0


def test_requests_are_answered_once_the_job_is_ready(
    place: tuple[Router, Agent], jobs: Path, pool: ThreadPoolExecutor
) -> None:
    router, agent = place
    path = router.create(agent.uid)
    early = [pool.submit(router.get, f"{path}/http/{number}") for number in range(3)]
    started = pool.submit(begin, router, path, jobs, "--delay", "0.5")
    wait_until(lambda: router.get(path + "/info").json()["state"] == "PENDING")
    late = [pool.submit(router.get, f"{path}/http/{number}") for number in range(3)]
    for answers in (early, late):
        assert [future.result().json()["path"] for future in answers] == ["/0", "/1", "/2"]
    assert started.result().status_code == 200


def test_bodies_of_held_requests_arrive_whole(
    place: tuple[Router, Agent], jobs: Path, pool: ThreadPoolExecutor
) -> None:
    router, agent = place
    path = router.create(agent.uid)
    data = bytes(range(256)) * 20_000
    plain = pool.submit(router.post, path + "/http/", data=data)
    pieces = pool.submit(router.post, path + "/http/sink", data=iter([data[:7], data[7:]]))
    body = {"args": [PYTHON, str(jobs / "fast_server.py")], "env": {}, "expose": {"port": "assign"}}
    assert router.post(path + "/start", body).status_code == 200
    assert pieces.result().text == str(len(data))
    assert plain.result().status_code in (200, 404)
    with Raw(router.url) as raw:
        new = router.create(agent.uid)
        raw.request("POST", new + "/http/sink", "Content-Length: 6\r\n", b"abc")
        raw.send(b"defGET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert router.post(new + "/start", body).status_code == 200
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert raw.read_exactly(1) == b"6"
        assert b'"auth"' in raw.read_until(b'"auth"')


def test_a_websocket_is_held_too(place: tuple[Router, Agent], jobs: Path) -> None:
    router, agent = place
    path = router.create(agent.uid)
    with Raw(router.url) as raw:
        raw.request("GET", path + "/http/upgrade", "Connection: Upgrade\r\nUpgrade: talk/1\r\n", b"early ")
        body = {"args": [PYTHON, str(jobs / "corner_server.py")], "env": {}, "expose": {"port": "assign"}}
        assert router.post(path + "/start", body).status_code == 200
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert raw.read_exactly(11) == b"firstearly "


def is_up(router: Router) -> bool:
    return all(entry["up"] for entry in router.get("/connections").json()["connections"])


def test_an_agent_that_is_away_is_waited_for(place: tuple[Router, Agent], jobs: Path, pool: ThreadPoolExecutor) -> None:
    router, agent = place
    path = router.serve(agent.uid, jobs / "prefix_server.py")
    agent.popen.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: not is_up(router))
        check_refused(router.get(path + "/http/"), "agent_unavailable", "RUNNING")
        answer = pool.submit(router.get, path + "/http/back")
    finally:
        agent.popen.send_signal(signal.SIGCONT)
    assert answer.result().json()["path"] == "/back"
    wait_until(lambda: is_up(router))


def test_a_job_that_has_ended_is_a_424(place: tuple[Router, Agent], jobs: Path) -> None:
    router, agent = place
    path = router.create(agent.uid)
    router.start(path, [PYTHON, str(jobs / "notify_server.py")])
    router.post(path + "/http/quit?code=3")
    router.post(path + "/wait")
    answer = router.get(path + "/http/")
    assert answer.status_code == 424
    assert answer.json()["code"] == "job_ended"
    assert answer.json()["state"] == "FINISHED"
    assert "exited with code 3" in answer.json()["detail"]
    page = router.get(path + "/http/", headers=BROWSER)
    assert "exited with code 3" in page.text
    assert "refresh" not in page.text
    router.post(path + "/remove")
    removed = router.get(path + "/http/")
    assert removed.status_code == 424
    assert removed.json()["state"] == "CLOSED"


def test_a_job_that_ends_while_requests_wait_for_it_is_a_424(
    place: tuple[Router, Agent], pool: ThreadPoolExecutor
) -> None:
    router, agent = place
    path = router.create(agent.uid)
    answer = pool.submit(router.get, path + "/http/")
    script = ["sh", "-c", "echo no such model >&2; exit 3"]
    failed = router.post(path + "/start", {"args": script, "env": {}, "expose": {"port": "assign"}})
    assert failed.status_code == 502
    for held in (answer.result(), router.get(path + "/http/")):
        assert held.status_code == 424
        assert held.json()["detail"] == failed.json()["detail"]
        assert "no such model" in held.json()["detail"]


def descriptors(router: Router) -> int:
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(router.child("gunicorn"))], capture_output=True, text=True, check=True
    ).stdout.split()
    return len(os.listdir(f"/proc/{worker}/fd"))


@needed("pgrep")
def test_clients_that_leave_while_they_are_held_leave_nothing_behind(place: tuple[Router, Agent]) -> None:
    router, agent = place
    path = router.create(agent.uid)
    router.get("/info")
    before = descriptors(router)
    waiting = []
    for number in range(20):
        raw = Raw(router.url)
        raw.request("POST", path + "/http/", "Content-Length: 1000000\r\n", b"x" * (number * 10_000))
        waiting.append(raw)
    wait_until(lambda: descriptors(router) >= before + 20)
    for raw in waiting:
        raw.sock.close()
    wait_until(lambda: descriptors(router) <= before, 5)
