"""Limits over the wire, with a real router of two workers that share their budgets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from prouter.web.metrics.counters import LIMITS
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

Answer = requests.Response
BURST = 10
"""Seconds' worth of requests that may come at once."""
OWNER_RATE, CLIENT_RATE, FAILURES = 2.0, 3.0, 12.0
LOST = 2
"""Requests that may pass in addition, because two workers counted them at the same moment."""
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def new_token(directory: Path, name: str, role: str) -> str:
    """A token made on the command line."""
    argv = [sys.executable, "-m", "prouter", "token", "create", name, "--role", role, "--json"]
    argv += ["--set", f"state.dir={str(directory / 'state')!r}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    text: str = json.loads(done.stdout)["token"]
    return text


class Place:
    """A router with limits, an agent, and tokens of two users and an admin."""

    def __init__(self, directory: Path) -> None:
        where = directory / "router"
        where.mkdir(parents=True)
        self.tokens = {name: new_token(where, name, role) for name, role in (("alice", "user"), ("bob", "user"))}
        self.tokens["root"] = new_token(where, "root", "admin")
        self.settings: dict[str, Any] = {
            "control.trusted_proxies": ["127.0.0.1/32"],
            "limits.jobs_per_owner": 3, "limits.requests_per_owner": OWNER_RATE,
            "limits.sandbox_bytes_per_owner": 1_000_000,
            "limits.unauthenticated_per_address": CLIENT_RATE, "limits.failures_per_address": FAILURES,
            "limits.failures_in_all": 100.0,
        }  # fmt: skip
        self.router: Router = start_router(where, **self.settings)
        self.agent: Agent = start_agent(directory / "agent", self.router)

    def ask(self, who: str | None, method: str, path: str, *, address: str = "", **options: Any) -> Answer:
        """Send a request as somebody, over a connection of its own, as if from an address."""
        headers = dict(options.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(who, who)}"
        if address:
            headers["X-Forwarded-For"] = address
        return requests.request(method, self.router.url + path, headers=headers, timeout=30, **options)

    def patiently(self, who: str, method: str, path: str, *, data: Any = None, **options: Any) -> Answer:
        """Send a request, again as long as requests come too fast; `data` may be a function that makes the body."""

        def answers() -> list[Answer]:
            response = self.ask(who, method, path, data=data() if callable(data) else data, **options)
            too_fast = response.headers.get("X-PRouter-Error") == "too_many_requests"
            return [] if too_fast else [response]

        return wait_until(answers, 60)[0]

    def create(self, who: str, key: str | None = None) -> Answer:
        headers = {"Idempotency-Key": key} if key else {}
        body = {"name": "a job", "agent": {"type": "uid", "uid": self.agent.uid}}
        return self.patiently(who, "POST", "/jobs/create", json=body, headers=headers)

    def stop(self) -> None:
        self.agent.stop()
        self.router.stop()


@pytest.fixture(scope="module")
def it(short_dir: Path) -> Iterator[Place]:
    place = Place(short_dir / "limits")
    yield place
    place.stop()


def flood(send: Callable[[], Answer]) -> tuple[list[Answer], float]:
    """Send requests, several at once, until some were refused; return the responses, and the seconds that it took."""
    began = time.monotonic()
    answers: list[Answer] = []

    def refused() -> bool:
        answers.extend(pool.map(lambda _: send(), range(20)))
        return statuses(answers)[429] >= 10

    with ThreadPoolExecutor(4) as pool:
        wait_until(refused, 60)
    return answers, time.monotonic() - began


def check_refusal(answer: Answer, limit: str, value: float, code: str = "too_many_requests") -> None:
    """A refusal says which limit was reached and when to come again."""
    assert answer.status_code == 429, answer.text
    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-PRouter-Error"] == problem["code"] == code
    assert problem["limit"] == {"name": limit, "value": value}
    assert limit in problem["detail"]
    assert re.fullmatch(r"[1-9][0-9]*", answer.headers["Retry-After"])


def refused(answers: list[Answer]) -> Answer:
    """Return the first of the responses with status 429."""
    return next(answer for answer in answers if answer.status_code == 429)


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def check_flood(answers: list[Answer], taken: float, passed: int, rate: float, burst: float) -> None:
    """As many requests passed as the budget has, whichever workers they came to."""
    found = statuses(answers)
    assert set(found) == {passed, 429}
    assert burst <= found[passed] <= burst + rate * taken + LOST


def test_an_owner_sends_as_many_requests_as_is_allowed_and_others_more(it: Place) -> None:
    answers, taken = flood(lambda: it.ask("alice", "GET", "/whoami"))
    check_flood(answers, taken, 200, OWNER_RATE, BURST * OWNER_RATE)
    check_refusal(refused(answers), "limits.requests_per_owner", OWNER_RATE)
    assert it.ask("bob", "GET", "/whoami").status_code == 200
    assert {it.ask("alice", "GET", path).status_code for path in ("/healthz", "/readyz")} == {200}


def test_requests_to_jobs_count_like_those_to_the_api(it: Place) -> None:
    path = it.create("bob").json()["path"]
    start = {"args": [sys.executable, "-c", SERVER], "env": {}, "expose": {"port": "assign"}}
    assert it.patiently("bob", "POST", f"{path}/start", json=start).status_code == 200
    answers, taken = flood(lambda: it.ask("bob", "GET", f"{path}/http/"))
    found = statuses(answers)
    assert 0 < found[200] <= BURST * OWNER_RATE + OWNER_RATE * taken + LOST
    check_refusal(refused(answers), "limits.requests_per_owner", OWNER_RATE)
    answers, taken = flood(lambda: it.ask("bob", "GET", f"{path}/info"))
    assert statuses(answers)[200] <= OWNER_RATE * (taken + 1) + LOST
    page = refused(flood(lambda: it.ask("bob", "GET", f"{path}/http/", headers={"Accept": "text/html"}))[0])
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Retry-After"]
    assert it.patiently("bob", "POST", f"{path}/remove").status_code == 200


def test_requests_without_a_token_are_limited_by_address(it: Place) -> None:
    paths = cycle(["/info", "/nothing", "/jobs/x/y/http/"])
    answers, taken = flood(lambda: it.ask(None, "GET", next(paths), address="192.0.2.1"))
    check_flood(answers, taken, 401, CLIENT_RATE, BURST * CLIENT_RATE)
    check_refusal(refused(answers), "limits.unauthenticated_per_address", CLIENT_RATE)
    assert "WWW-Authenticate" not in refused(answers).headers
    claims = cycle(["198.51.100.1, 192.0.2.1", "198.51.100.2,,::1, 192.0.2.1 "])
    answers, taken = flood(lambda: it.ask(None, "GET", "/info", address=next(claims)))
    assert statuses(answers)[401] <= CLIENT_RATE * (taken + 1) + LOST, "a client chooses no address"
    other = {"X-Forwarded-Host": "nobody.example"}
    answers, taken = flood(lambda: it.ask(None, "GET", "/info", address="192.0.2.1", headers=other))
    assert statuses(answers)[421] <= CLIENT_RATE * (taken + 1) + LOST, "whatever else is wrong with a request"
    page = {
        "Accept": "text/html",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
        "User-Agent": "Mozilla/5",
    }
    answers, taken = flood(
        lambda: it.ask(None, "GET", "/jobs/x/y/http/", address="192.0.2.1", headers=page, allow_redirects=False)
    )
    assert statuses(answers)[303] <= CLIENT_RATE * (taken + 1) + LOST, "also those that lead to the page to sign in"
    assert it.ask(None, "GET", "/sign-in", address="192.0.2.1").status_code == 200
    assert it.ask(None, "GET", "/info", address="192.0.2.2").status_code == 401
    assert it.ask("root", "GET", "/info", address="192.0.2.1").status_code == 200, "a valid token is always let in"
    assert it.ask(None, "GET", "/healthz", address="192.0.2.1").status_code == 200


def test_addresses_of_one_ipv6_network_count_as_one(it: Place) -> None:
    numbers = count()
    answers, taken = flood(lambda: it.ask(None, "GET", "/info", address=f"2001:db8::{next(numbers)}"))
    check_flood(answers, taken, 401, CLIENT_RATE, BURST * CLIENT_RATE)
    assert it.ask(None, "GET", "/info", address="2001:db8:0:1::1").status_code == 401


def test_failed_sign_ins_are_slowed_and_a_valid_token_signs_in(it: Place) -> None:
    def sign_in(token: str) -> Answer:
        return it.ask(None, "POST", "/sign-in", address="192.0.2.50", data={"token": token}, allow_redirects=False)

    assert sign_in("wrong").status_code == 401
    check_refusal(sign_in("wrong"), "limits.failures_per_address", FAILURES)
    assert sign_in(it.tokens["bob"]).status_code == 303
    assert it.ask(None, "GET", "/sign-in", address="192.0.2.50").status_code == 200


def test_wrong_tokens_have_a_smaller_budget_and_no_valid_one_is_ever_refused(it: Place) -> None:
    wrong = "prt_" + "x" * 43
    values = cycle([f"Bearer {wrong}", "Basic eDp5", "nonsense", "Bearer"])
    address = "203.0.113.9"
    answers, taken = flood(
        lambda: it.ask(None, "GET", "/info", address=address, headers={"Authorization": next(values)})
    )
    check_flood(answers, taken, 401, FAILURES / 60, FAILURES)
    check_refusal(refused(answers), "limits.failures_per_address", FAILURES)
    answers, taken = flood(lambda: it.ask(wrong, "GET", "/jobs/x/y/http/", address="203.0.113.10"))
    check_flood(answers, taken, 401, FAILURES / 60, FAILURES)
    check_refusal(refused(answers), "limits.failures_per_address", FAILURES)
    wait_until(lambda: it.ask(None, "GET", "/info", address=address).status_code == 401, what="no attempt, no failure")
    assert it.ask("root", "GET", "/info", address=address).status_code == 200
    numbers = count()
    answers, _ = flood(lambda: it.ask(wrong, "GET", "/info", address=f"198.51.{next(numbers)}.1"))
    check_refusal(refused(answers), "limits.failures_in_all", 100.0)
    assert it.ask("root", "GET", "/info", address="203.0.113.200").status_code == 200


def test_budgets_outlive_a_worker(it: Place) -> None:
    began = time.monotonic()
    answers, _ = flood(lambda: it.ask(None, "GET", "/info", address="192.0.2.77"))
    workers = psutil.Process(it.router.child("gunicorn")).children()
    os.kill(workers[0].pid, signal.SIGKILL)
    wait_until(lambda: it.router.get("/readyz").status_code == 200 and not workers[0].is_running())
    answers += flood(lambda: it.ask(None, "GET", "/info", address="192.0.2.77"))[0]
    check_flood(answers, time.monotonic() - began, 401, CLIENT_RATE, BURST * CLIENT_RATE)


def test_no_race_gives_an_owner_more_jobs_and_a_repeat_counts_once(it: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: it.create("root", f"key {number // 2}"), range(8)))
    made = {answer.json()["uid"] for answer in answers if answer.status_code == 200}
    assert len(made) == 3
    check_refusal(refused(answers), "limits.jobs_per_owner", 3, "limit_reached")
    one = next(answer.json() for answer in answers if answer.status_code == 200)
    port = int(it.router.agents.rpartition(":")[2])
    it.router.stop()
    it.router = start_router(it.router.directory, **it.settings, server__port=port)
    wait_until(lambda: it.patiently("root", "GET", "/connections").json()["connections"])
    assert it.create("root").status_code == 429, "also after a restart"
    assert it.patiently("root", "POST", one["path"] + "/remove").status_code == 200
    assert it.create("root").status_code == 200


def test_bytes_count_over_all_sandboxes_of_an_owner(it: Place) -> None:
    jobs = [it.create("alice").json()["path"] for _ in range(2)]

    def upload(job: str, size: int, **options: Any) -> Answer:
        return it.patiently("alice", "PUT", f"{job}/file/f", data=b"x" * size, **options)

    assert upload(jobs[0], 700_000).status_code == 200
    check_refusal(upload(jobs[1], 400_000), "limits.sandbox_bytes_per_owner", 1_000_000, "limit_reached")
    assert upload(jobs[1], 1000).status_code == 200
    chunks = it.patiently("alice", "PUT", f"{jobs[1]}/file/g", data=lambda: (b"x" * 100_000 for _ in range(4)))
    check_refusal(chunks, "limits.sandbox_bytes_per_owner", 1_000_000, "limit_reached")
    write = {
        "args": [sys.executable, "-c", "open('big', 'w').write('x' * 400_000)"],
        "env": {},
        "port_expected_count": 0,
    }
    assert it.patiently("alice", "POST", f"{jobs[1]}/start", json=write).status_code == 200
    # What a job writes itself counts once its agent has measured.
    wait_until(lambda: upload(jobs[1], 0).status_code == 429, 60)
    check_refusal(it.create("alice"), "limits.sandbox_bytes_per_owner", 1_000_000, "limit_reached")
    archive = it.patiently("alice", "PUT", f"{jobs[1]}/archive", data=lambda: iter([b"x"]))
    check_refusal(archive, "limits.sandbox_bytes_per_owner", 1_000_000, "limit_reached")
    assert it.patiently("alice", "POST", jobs[0] + "/remove").status_code == 200
    assert upload(jobs[1], 1000).status_code == 200


def test_metrics_count_refusals_by_limit(it: Place) -> None:
    def counted() -> dict[str, float]:
        text = it.patiently("root", "GET", "/metrics").text
        found = re.findall(r'^prouter_worker_refusals_total\{limit="([^"]+)"\} (\S+)', text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    before = counted()
    answers, _ = flood(lambda: it.ask(None, "GET", "/info", address="192.0.2.99"))
    wait_until(lambda: it.create("bob").status_code == 429)
    expected = Counter({"limits.unauthenticated_per_address": statuses(answers)[429], "limits.jobs_per_owner": 1})
    after = counted()
    assert {name: after[name] - before[name] for name in expected} == expected
    assert after.keys() == set(LIMITS)
