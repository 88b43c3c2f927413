"""The kinds of clients of a load: each function returns one kind's round, for `Load.add`."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import connect

from tests.faults.load import Gauge
from tests.faults.pattern import Checker, Pattern
from tests.support.processes import wait_until
from tests.support.raw_http import Raw

__all__ = [
    "Creations",
    "Events",
    "download",
    "dropped",
    "echo",
    "events",
    "file_round_trip",
    "follow_log",
    "request",
    "small_request",
    "upload",
    "wait_for",
]

MIB = 1024 * 1024
_PIECE = 256 * 1024
_TIMEOUT = 90.0
_seeds = itertools.count(1)

Round = Callable[[Gauge], None]


def request(url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Send one request over a connection of its own; return the JSON of the response.

    Raises:
        AssertionError: any status but 2xx.
    """
    connection = _connect(url)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]!r}"
        return json.loads(text) if text else None
    finally:
        connection.close()


def download(url: str, path: str, size: int, rate: float = 0.0, *, chunked: bool = False) -> Round:
    """Download `size` bytes from a job (`job_server`) at `rate` bytes per second; 0 means as fast as possible."""

    def one_round(gauge: Gauge) -> None:
        seed = next(_seeds)
        target = f"{path}/http/pattern/{seed}/{size}" + ("?chunked=1" if chunked else "")
        _receive(url, target, Checker(seed), size, rate, gauge)

    return one_round


def upload(url: str, path: str, size: int, rate: float = 0.0, *, chunked: bool = False) -> Round:
    """Upload `size` bytes to a job (`job_server`), which checks them."""

    def one_round(gauge: Gauge) -> None:
        seed = next(_seeds)
        answer = _send(url, f"{path}/http/check/{seed}", seed, size, rate, gauge, chunked=chunked)
        told = json.loads(answer)
        assert told == {"bytes": size, "error": None}, told

    return one_round


def file_round_trip(url: str, path: str, size: int, rate: float = 0.0) -> Round:
    """Upload a file to a job's sandbox, download it, delete it."""

    def one_round(gauge: Gauge) -> None:
        seed = next(_seeds)
        target = f"{path}/file/load/{seed}"
        _send(url, target, seed, size, rate, gauge)
        _receive(url, target, Checker(seed), size, rate, gauge)
        request(url, "DELETE", target)

    return one_round


def echo(url: str, path: str, pause: float = 0.02, seconds: float = inf) -> Round:
    """Send numbers over a WebSocket to a job (`fast_server`); each must come back once and in order."""

    def one_round(gauge: Gauge) -> None:
        target = f"ws://{urlsplit(url).netloc}{path}/http/ws"
        with connect(target, open_timeout=_TIMEOUT, ping_interval=None, close_timeout=_TIMEOUT) as socket_:
            number, end = 0, time.monotonic() + seconds
            while not gauge.stopping.is_set() and time.monotonic() < end:
                for ahead in range(3):
                    socket_.send(struct.pack("<Q", number + ahead) * 8)
                for ahead in range(3):
                    got = socket_.recv(_TIMEOUT)
                    assert got == struct.pack("<Q", number + ahead) * 8, (number + ahead, got)
                number += 3
                gauge.tick()
                gauge.rest(pause)

    return one_round


def wait_for(url: str, path: str, check: Callable[[dict[str, Any]], None]) -> Round:
    """Wait for the end of a job, and call `check` with its info. For `Load.park`."""

    def one_round(gauge: Gauge) -> None:
        connection = _connect(url, None)
        try:
            connection.request("POST", f"{path}/wait")
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, f"wait: {answer.status} {text[:300]!r}"
            check(json.loads(text))
        finally:
            connection.close()

    return one_round


def follow_log(url: str, path: str, seconds: float = inf) -> Round:
    """Follow the log of a job that prints numbers from 0 on, one a line; each must come once and in order."""

    def one_round(gauge: Gauge) -> None:
        connection = _connect(url)
        try:
            connection.request("GET", f"{path}/logs/stdout?follow=1&offset=0")
            answer = connection.getresponse()
            assert answer.status == 200, answer.status
            end = time.monotonic() + seconds
            for number in itertools.count():
                line = answer.readline()
                assert line == b"%d\n" % number, (number, line)
                gauge.tick()
                if gauge.stopping.is_set() or time.monotonic() > end:
                    return
        finally:
            connection.close()

    return one_round


def events(url: str, path: str, count: int, interval_ms: int) -> Round:
    """Read `count` server-sent events of a job (`fast_server`), in the order of their times."""

    def one_round(gauge: Gauge) -> None:
        connection = _connect(url)
        try:
            connection.request("GET", f"{path}/http/sse?interval_ms={interval_ms}&count={count}")
            answer = connection.getresponse()
            before = 0
            for _ in range(count):
                line = answer.readline()
                assert line.startswith(b"data: "), line
                sent = int(line[6:])
                assert sent > before
                before = sent
                assert answer.readline() == b"\n"
                gauge.tick()
            assert answer.read() == b""
        finally:
            connection.close()

    return one_round


def small_request(url: str, target: str, *, fresh: bool) -> Round:
    """GET `target`, which must answer 200, over one connection or over a `fresh` one each time."""
    kept = threading.local()

    def one_round(gauge: Gauge) -> None:
        connection = getattr(kept, "connection", None) or _connect(url)
        kept.connection = None
        connection.request("GET", target, headers={"Connection": "close"} if fresh else {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, f"{answer.status} {text[:300]!r}"
        if fresh or answer.will_close:
            connection.close()
        else:
            kept.connection = connection

    return one_round


def dropped(url: str, bytes_job: str, fast_job: str) -> None:
    """Disconnect in the middle of a download, an upload, a long poll and a WebSocket."""
    head = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with Raw(url, _TIMEOUT) as raw:
        raw.request("GET", f"{bytes_job}/http/pattern/1/{8 * MIB}")
        raw.read_exactly(1000)
    with Raw(url, _TIMEOUT) as raw:
        raw.request("POST", f"{bytes_job}/http/check/1", f"Content-Length: {8 * MIB}\r\n", b"x" * 1000)
    with Raw(url, _TIMEOUT) as raw:
        raw.request("GET", f"{bytes_job}/http/hang")
    with Raw(url, _TIMEOUT) as raw:
        raw.request("GET", f"{fast_job}/http/ws", head + "Sec-WebSocket-Version: 13\r\n")
        raw.read_until(b"\r\n\r\n")


class Creations:
    """A stream of jobs: create, start, wait, remove. Each writes a line to `marks`, which shows how often it ran.

    Attributes:
        names: of all jobs whose life was completed.
    """

    def __init__(self, url: str, agent: str, marks: Path) -> None:
        self.names: list[str] = []
        self._url = url
        self._agent = agent
        self._marks = marks
        self._numbers = itertools.count()
        self._paths: set[str] = set()

    def one_round(self, gauge: Gauge) -> None:
        """Create, start, wait for and remove one job."""
        name = f"mark-{next(self._numbers)}"
        selector = {"type": "uid", "uid": self._agent}
        path = request(self._url, "POST", "/jobs/create", {"name": name, "agent": selector})["path"]
        gauge.tick()
        assert path not in self._paths, f"{path} was given to two jobs"
        self._paths.add(path)
        body = {"args": ["sh", "-c", f"echo {name} >> {self._marks}"], "env": {}, "port_expected_count": 0}
        request(self._url, "POST", f"{path}/start", body)
        gauge.tick()
        info = request(self._url, "POST", f"{path}/wait")
        assert (info["state"], info["exit_code"]) == ("FINISHED", 0), info
        request(self._url, "POST", f"{path}/remove")
        self.names.append(name)

    def check(self) -> None:
        """Check that every job ran exactly once, and that none was created twice."""
        ran = self._marks.read_text().split()
        assert sorted(ran) == sorted(self.names), set(ran) ^ set(self.names) or "some ran twice"
        for name in self.names:
            listed = request(self._url, "GET", f"/jobs?name={name}&limit=10")["jobs"]
            assert all(info["state"] == "CLOSED" for info in listed), listed
            assert len(listed) <= 1, listed


class Events:
    """A follower of the router's events, from now on, that remembers which jobs it saw end and be removed.

    Attributes:
        finished: names of jobs that ended.
        removed: names of jobs that were removed.
    """

    def __init__(self, url: str) -> None:
        self.finished: set[str] = set()
        self.removed: set[str] = set()
        self._last = 0
        self._problem: BaseException | None = None
        self._url = url
        self._open()
        threading.Thread(target=self._follow, daemon=True).start()

    def check(self, names: list[str]) -> None:
        """Check that the end and the removal of all these jobs were reported, and all events in order."""
        told = {"finished": self.finished, "removed": self.removed}

        def missing() -> dict[str, list[str]]:
            return {what: sorted(left) for what, seen in told.items() if (left := set(names) - seen)}

        try:
            wait_until(lambda: self._problem or not missing())
        except AssertionError as error:
            raise AssertionError(f"after event {self._last}, of {len(names)} jobs not told: {missing()}") from error
        assert self._problem is None, repr(self._problem)

    def _open(self) -> None:
        self._connection = _connect(self._url)
        self._connection.request("GET", "/events", headers={"Last-Event-ID": str(self._last)} if self._last else {})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.status

    def _follow(self) -> None:
        try:
            while True:
                try:
                    self._take(self._answer)
                except EOFError:  # its worker drains
                    self._connection.close()
                    self._open()
        except BaseException as error:
            self._problem = error
        finally:
            self._connection.close()

    def _take(self, answer: http.client.HTTPResponse) -> None:
        """Read one event, or a comment."""
        event: dict[str, str] = {}
        while (line := answer.readline()) != b"\n":
            if not line:
                raise EOFError("the events ended")
            name, _, value = line.decode().rstrip("\n").partition(": ")
            event[name] = value
        if "id" in event:
            assert int(event["id"]) > self._last, f"event {event['id']} after {self._last}"
            self._last = int(event["id"])
        assert event.get("event") != "dropped", event
        if event.get("event") in ("job", "job.removed"):
            job = json.loads(event["data"])["job"]
            if job["state"] == "FINISHED":
                self.finished.add(job["name"])
            if event["event"] == "job.removed":
                self.removed.add(job["name"])


def _connect(url: str, timeout: float | None = _TIMEOUT) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(url: str, target: str, checker: Checker, size: int, rate: float, gauge: Gauge) -> None:
    connection = _connect(url)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        assert answer.status == 200, f"{target}: {answer.status} {answer.read(300)!r}"
        started = time.monotonic()
        while data := answer.read1(_PIECE):
            checker.feed(data)
            gauge.tick()
            _keep_to(rate, started, checker.position, gauge)
        assert checker.position == size, f"{target}: {checker.position} of {size} bytes"
    finally:
        connection.close()


def _send(url: str, target: str, seed: int, size: int, rate: float, gauge: Gauge, *, chunked: bool = False) -> bytes:
    def pieces() -> Iterator[bytes]:
        started, sent = time.monotonic(), 0
        for piece in Pattern(seed).blocks(size, _PIECE):
            yield piece
            sent += len(piece)
            gauge.tick()
            _keep_to(rate, started, sent, gauge)

    connection = _connect(url)
    try:
        headers = {} if chunked else {"Content-Length": str(size)}
        connection.request("POST", target, pieces(), headers, encode_chunked=chunked)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 201), f"{target}: {answer.status} {text[:300]!r}"
        return text
    finally:
        connection.close()


def _keep_to(rate: float, started: float, done: int, gauge: Gauge) -> None:
    """Wait as long as `rate` demands; not at the load's end."""
    ahead = done / rate - (time.monotonic() - started) if rate else 0.0
    if ahead > 0.001:
        gauge.rest(ahead)
