"""The HTTP API answers every request that a client may send, and no other client notices."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil
import pytest

from prouter import requests as models
from tests.fuzz.models import paths, put
from tests.fuzz.values import TEXTS, VALUES
from tests.support.processes import Agent, start_agent, start_router

MIB = 1024 * 1024
CASES = 300
"""Number of cases of a kind that are drawn from all of them."""
JSON_VALUES = [value for value in VALUES if not isinstance(value, bytes)]
WORDS = [
    *(value if isinstance(value, str) else json.dumps(value) for value in JSON_VALUES), "0x10", "1e999", "٣", "²", "+5",
    "5 ", "NEW,RUNNING", "0o777", "9" * 30, "9" * 5000, ".5", "[a", "[!-]", "*" * 500, "%", "%zz", "%ff", "a&b", "=",
    "bytes=0-", "bytes=-0", "bytes=5-2", "bytes=0-0,2-3", "bytes=9999999999999999999999-", "bytes=a-b", "*", '"a"',
    'W/"a"', '"a", "b"', 'W/', "," * 1000, "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 9999 08:49:37 GMT",
    "text/html", "text/event-stream", "a/b;q=2", "a/b;q=x", "gzip", "close", "upgrade", "websocket", "bytes 0-1/2",
    "multipart/form-data", "text/plain; charset=utf-99", 'for="[::1]:99999"', "evil.example", "[::1", "Bearer x", "=;=",
]  # fmt: skip
HEADERS = [
    "Accept", "Accept-Encoding", "Authorization", "Cache-Control", "Content-Encoding", "Content-Range", "Content-Type",
    "Cookie", "Forwarded", "Host", "Idempotency-Key", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
    "If-Unmodified-Since", "Last-Event-ID", "Origin", "Prefer", "Range", "Referer", "Sec-Fetch-Site", "TE", "Upgrade",
    "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto",
    "X-HTTP-Method-Override", "X-Request-ID",
]  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "CreateRequest": {"name": "x", "agent": {"type": "any"}},
    "RunRequest": {"name": "x", "args": ["true"], "port_expected_count": 0},
    "StartRequest": {"args": ["true"], "env": {}, "port_expected_count": 0},
    "SignalRequest": {"signal": "TERM"},
    "BridgeRequest": {"url": "ws://127.0.0.1:9/x"},
    "StopRequest": {"grace": 0},
}
QUERIES = {
    "/jobs": ["state", "agent", "name", "limit", "cursor", "x"],
    "/connections": ["x"],
    "{job}/info": ["usage"],
    "{job}/logs/stdout": ["offset", "tail", "follow"],
    "{job}/file/a": ["x"],
    "{job}/archive": ["include", "exclude", "compress", "format"],
    "{job}/wsconnect": ["cursor"],
}
PATHS = [
    "/{}", "//{}", "/jobs/{}", "/jobs/{}/x/info", "{job}/{}", "{job}/logs/{}", "{job}/file/{}", "{job}/archive/{}",
    "{job}/wsconnect/{}", "/connections/{}", "{job}{}", "/jobs/{}/x/http/", "{job}/http/{}",
]  # fmt: skip
NAMES = [
    *(text for text in TEXTS if 0 < len(text) <= 512), "</script><img src=x onerror=alert(1)>", "\u202e\u2066x",
    "data: x",
    "x" * 512, "💥" * 512, "%0d%0aX: y", "\ue000", "-rf", "{{7*7}}",
]  # fmt: skip
Case = tuple[str, str, bytes | None, list[tuple[str, str]]]
"""Method, target, body and fields of a request."""
DOCUMENTED = {501, 502, 503, 504, 507}


class Reply(NamedTuple):
    """What came back."""

    status: int
    head: bytes
    body: bytes


class Stand:
    """A router with two workers, an agent with a finished job that has a file, and another client that measures."""

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self.router = start_router(directory / "api", control__hold=0.2)
        held.callback(self.router.stop)
        self.agent: Agent = start_agent(directory / "api-agent", self.router)
        held.callback(self.agent.stop)
        self.job = self.router.create(self.agent.uid)
        self.router.post(f"{self.job}/file/a", data=b"hello\n" * 100)
        self.router.start(self.job, ["seq", "100"], port_expected_count=0)
        self.router.post(f"{self.job}/wait")
        self.port = int(self.router.url.rpartition(":")[2])
        self.troubles: list[str] = []
        self._stop = threading.Event()
        self._neighbour = threading.Thread(target=self._measure, daemon=True)
        self._neighbour.start()
        held.callback(self._ended)

    def _ended(self) -> None:
        self._stop.set()
        self._neighbour.join()

    def _measure(self) -> None:
        while not self._stop.wait(0.05):
            for target in ("/info", f"{self.job}/info", f"{self.job}/file/a"):
                began = time.monotonic()
                try:
                    status = self.ask("GET", target).status
                except OSError as error:
                    status = repr(error)  # type: ignore[assignment]
                took = time.monotonic() - began
                if status != 200 or took > 5:
                    self.troubles.append(f"{target}: {status} after {took:.1f} s")

    def ask(
        self, method: str, target: str, body: bytes | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> Reply:
        """Send one request over a connection of its own, byte by byte."""
        lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), f"Host: 127.0.0.1:{self.port}".encode()]
        lines += [f"{name}: {value}".encode() for name, value in headers]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        data = b"\r\n".join([*lines, b"Connection: close", b"", body or b""])
        got = bytearray()
        with socket.create_connection(("127.0.0.1", self.port), 30) as sock, suppress(ConnectionError):
            sock.sendall(data)
            while piece := sock.recv(65536):
                got += piece
        head, _, content = bytes(got).partition(b"\r\n\r\n")
        return Reply(int(head.split(b" ", 2)[1]), head, content)

    def try_all(self, cases: list[Case]) -> None:
        """Send some of the cases, four at a time, and check each response."""
        some = Random(1).sample(cases, min(CASES, len(cases)))
        with ThreadPoolExecutor(4) as pool:
            for case, reply in zip(some, pool.map(lambda case: self.ask(*case), some), strict=True):
                assert reply.status < 500 or reply.status in DOCUMENTED, (case, reply)
                if reply.status >= 400 and case[0] != "HEAD" and b"text/html" not in reply.head:
                    problem = json.loads(reply.body)
                    assert problem["status"] == reply.status, case
                    assert 0 < len(problem["detail"]) < 10_000, case

    def resident(self) -> int:
        """Return the memory of broker, workers and agent in bytes."""
        parent = psutil.Process(self.router.child("gunicorn"))
        pids = [self.router.child("broker"), self.agent.pid, *(child.pid for child in parent.children())]
        return sum(psutil.Process(pid).memory_info().rss for pid in pids)


@pytest.fixture(scope="module")
def stand(short_dir: Path) -> Iterator[Stand]:
    with ExitStack() as held:
        yield Stand(short_dir, held)


@pytest.fixture(autouse=True)
def nobody_else_notices(stand: Stand) -> Iterator[None]:
    before = stand.resident()
    yield
    assert stand.troubles == []
    assert stand.resident() - before < 64 * MIB
    log = stand.router.log.read_text() + stand.agent.log.read_text()
    for bad in ("Traceback", "event=link_down", "event=broker_lost", "request_crashed"):
        assert bad not in log, log[max(0, log.index(bad) - 500) :][:3000]
    for line in log.splitlines():
        assert re.match(r"\[?\d{4}-\d\d-\d\d[T ]", line), line[:300]
        assert len(line) < 10_000


@pytest.mark.parametrize("model", sorted(BODIES))
def test_a_body_may_hold_anything_anywhere(stand: Stand, model: str) -> None:
    cases: list[Case] = []
    for steps in paths(getattr(models, model)):
        for value in JSON_VALUES:
            good = BODIES[model]
            if steps[-1] in ("address", "token"):
                continue  # Of an agent that is dialled, for ten seconds: see below.
            if steps[0] == "expose":
                good = {**good, "expose": {"port": "assign", "timeout": 0.3}}
            target = {
                "CreateRequest": "/jobs/create",
                "RunRequest": "/jobs/run?wait=5",
                "BridgeRequest": f"{stand.job}/wsconnect/x",
            }.get(model, f"{stand.job}/{model.removesuffix('Request').lower()}")
            cases.append(("POST", target, json.dumps(put(good, steps, value)).encode(), []))
    stand.try_all(cases)


def test_an_address_that_is_none_is_refused_at_once(stand: Stand) -> None:
    bad = [value for value in JSON_VALUES if not isinstance(value, str) or ":" not in value]
    for key in ("address", "token"):
        choice = {"type": "address", "address": "nowhere", "token": "x"}
        bodies = [{"name": "x", "agent": {**choice, key: value}} for value in bad]
        stand.try_all([("POST", "/jobs/create", json.dumps(body).encode(), []) for body in bodies])


def test_a_query_may_hold_anything(stand: Stand) -> None:
    cases: list[Case] = []
    for place, names in QUERIES.items():
        for name in names:
            for word in WORDS:
                target = place.replace("{job}", stand.job)
                cases.append(("GET", f"{target}?{name}={quote(word)}", None, []))
                if not re.search(r"[\s#]", word) and word.isascii():
                    cases.append(("GET", f"{target}?{name}={word}", None, []))
    cases = [case for case in cases if not re.search(r"[\x00-\x1f\x7f]", case[1])]
    stand.try_all(cases)


@pytest.mark.parametrize("seed", range(2))
def test_fields_of_a_request_may_hold_anything(stand: Stand, seed: int) -> None:
    random = Random(seed)
    words = [word for word in WORDS if not re.search(r"[\x00-\x1f\x7f]", word)]
    create = json.dumps(BODIES["CreateRequest"]).encode()
    asked: list[tuple[str, str, bytes | None]] = [
        *(("GET", stand.job + rest, None) for rest in ("/file/a", "/file/", "/logs/stdout", "/archive", "/info")),
        ("GET", f"{stand.job}/http/", None),
        *(("GET", target, None) for target in ("/", "/jobs", "/connections", "/openapi.json")),
        ("POST", "/jobs/create", create),
        ("PUT", f"{stand.job}/file/b", b"x"),
        ("DELETE", f"{stand.job}/file/b", None),
    ]  # fmt: skip
    cases = []
    for _ in range(CASES):
        fields = [(random.choice(HEADERS), random.choice(words)) for _ in range(random.choice([1, 1, 2, 3]))]
        cases.append((*random.choice(asked), fields))
    stand.try_all(cases)


def test_a_path_may_hold_anything(stand: Stand) -> None:
    odd = [quote(word, safe="") for word in WORDS] + ["%", "%00", "..", "%2e%2e", "%2f", "\xff", "a" * 20000, "*", "{"]
    methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]
    random = Random(1)
    cases: list[Case] = []
    for place in PATHS:
        for word in odd:
            method = random.choice(methods)
            target = place.replace("{job}", stand.job).replace("{}", word)
            body = b"" if method in ("POST", "PUT", "PATCH") else None
            cases.append((method, target, body, [("Accept", random.choice(["text/html", "*/*"]))]))
    stand.try_all([case for case in cases if not (case[0] != "GET" and "/file/" in case[1])])


def test_a_name_is_only_a_name(stand: Stand) -> None:
    taken = 0
    for number, name in enumerate(NAMES):
        body = json.dumps({**BODIES["CreateRequest"], "name": name}).encode()
        replies = [stand.ask("POST", "/jobs/create", body, [("Idempotency-Key", f"k{number}")]) for _ in range(2)]
        if replies[0].status == 400:
            assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", name), name
            continue
        taken += 1
        job, again = (json.loads(reply.body) for reply in replies)
        assert (job["name"], again["uid"]) == (name, job["uid"])
        found = json.loads(stand.ask("GET", f"/jobs?name={quote(name)}").body)["jobs"]
        assert job["uid"] in [one["uid"] for one in found]
        page = stand.ask("GET", f"{job['path']}/http/", None, [("Accept", "text/html")])
        assert page.status == 503
        if "<" in name:
            assert name.encode() not in page.body
        start = {"args": [name], "env": {"X": name}, "cwd": name, "port_expected_count": 0}
        assert stand.ask("POST", f"{job['path']}/start", json.dumps(start).encode()).status in (400, 502)
        stand.ask("POST", f"{job['path']}/remove", b"")
    assert taken > len(NAMES) / 2
    check_events(stand)


def check_events(stand: Stand) -> None:
    """Check that every line of the events so far is a field of a server-sent event, whatever names jobs have."""
    answer = stand.router.get("/events?after=0", stream=True)
    lines = []
    with answer:
        for line in answer.iter_lines():
            lines.append(line)
            if b'"x"' in line and len(lines) > 100:
                break
    assert all(re.match(rb"(id|event|data|retry): ?|:|$", line) for line in lines)
