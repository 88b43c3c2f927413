"""Rows about the router's own API: jobs, files, and the requests of dashboards."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time

from tests.bench import load
from tests.bench.client import BadAnswer
from tests.bench.rows import PROUTER, Probe, Row, Settings, at_least, at_most
from tests.bench.stack import Prouter, Stack

__all__ = ["PROBES"]

POST_FILES = """
wrk.method = "POST"
wrk.body = string.rep("x", 1024)
wrk.headers["Content-Type"] = "application/octet-stream"
local n = 0
request = function()
  n = (n + 1) % 1000
  return wrk.format(nil, wrk.path .. n)
end
"""


def one_client(stack: Stack, settings: Settings) -> dict[str, float]:
    """Jobs one after another."""
    times = sorted(lives(stack, settings.seconds))
    return {"p50": statistics.median(times) * 1000, "p99": times[int(len(times) * 0.99)] * 1000, "requests": len(times)}


def many_clients(stack: Stack, settings: Settings) -> dict[str, float]:
    """Jobs of 16 clients at the same time."""
    done: list[int] = []

    def run() -> None:
        done.append(len(lives(stack, settings.seconds)))

    threads = [threading.Thread(target=run) for _ in range(16)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    if len(done) != len(threads):
        raise BadAnswer("a client of jobs failed")
    return {"rate": sum(done) / took, "requests": sum(done)}


def lives(stack: Stack, seconds: float) -> list[float]:
    """Create a job, start ``true``, wait, remove, over and over; yield the seconds of each round."""
    assert isinstance(stack, Prouter)
    times = []
    with contextlib.closing(stack.connect()) as http:
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            path = stack.create_job(http)
            http.post(f"{path}/start", {"args": ["true"], "env": {}, "port_expected_count": 0})
            http.post(f"{path}/wait")
            http.post(f"{path}/remove")
            times.append(time.perf_counter() - started)
    return times


def sandbox(stack: Stack) -> str:
    """Return the path of the file API of the serving job."""
    return stack.prefix.removesuffix("/http") + "/file"


def big_files(stack: Stack, settings: Settings) -> dict[str, float]:
    """One big file up and down."""
    target = f"{sandbox(stack)}/big"
    up = load.upload(stack, target, settings.bulk, chunked=False, count_back=False)
    down = load.download(stack, target, settings.bulk)
    return {"up": up, "down": down}


def small_files(stack: Stack, settings: Settings) -> dict[str, float]:
    """Files of 1 KiB, 1 and 8 clients."""
    up, down = f"!{sandbox(stack)}/small-", f"!{sandbox(stack)}/read"
    with contextlib.closing(stack.connect()) as http:
        if (answer := http.request("POST", down[1:], b"x" * 1024)).status != 200:
            raise BadAnswer(f"POST {down[1:]}: {answer.status} {answer.body[:300]!r}")
    return {
        "up1": load.get(stack, up, 1, settings.seconds, POST_FILES).rate,
        "down1": load.get(stack, down, 1, settings.seconds).rate,
        "up8": load.get(stack, up, 8, settings.seconds, POST_FILES).rate,
        "down8": load.get(stack, down, 8, settings.seconds).rate,
    }


def info(stack: Stack, settings: Settings) -> dict[str, float]:
    """GET /info, 16 connections."""
    seen = load.get(stack, "!/info", 16, settings.seconds)
    return {"rate": seen.rate, "requests": seen.done}


def connections(stack: Stack, settings: Settings) -> dict[str, float]:
    """GET /connections, 16 connections."""
    seen = load.get(stack, "!/connections", 16, settings.seconds)
    return {"rate": seen.rate, "requests": seen.done}


PROBES = (
    Probe(
        "job1",
        one_client,
        (
            Row("job1.p50", "job life, 1 client, p50", "ms", "p50", at_most(30), at_most(10), "111", higher=False),
            Row("job1.cpu", "CPU per job's life", "µs", "cpu_us", higher=False),
        ),
        PROUTER,
    ),
    Probe(
        "job16",
        many_clients,
        (Row("job16.rate", "job lives, 16 clients", "jobs/s", "rate", at_least(190), None, "192"),),
        PROUTER,
    ),
    Probe(
        "file",
        big_files,
        (
            Row("file.up", "file API, big file up", "MB/s", "up", at_least(500), None, "337"),
            Row("file.down", "file API, big file down", "MB/s", "down", at_least(1000), None, "967"),
        ),
        PROUTER,
    ),
    Probe(
        "file1k",
        small_files,
        (
            Row(
                "file1k.up1", "file API, 1 KiB up, 1 client", "files/s", "up1", at_least(1500), at_least(3000), "1,450"
            ),
            Row(
                "file1k.down1",
                "file API, 1 KiB down, 1 client",
                "files/s",
                "down1",
                at_least(1500),
                at_least(3000),
                "1,870",
            ),
            Row(
                "file1k.up8", "file API, 1 KiB up, 8 clients", "files/s", "up8", at_least(4000), at_least(8000), "3,700"
            ),
            Row(
                "file1k.down8",
                "file API, 1 KiB down, 8 clients",
                "files/s",
                "down8",
                at_least(4000),
                at_least(8000),
                "3,430",
            ),
        ),
        PROUTER,
    ),
    Probe(
        "info",
        info,
        (Row("info.rate", "GET /info, 16 connections", "req/s", "rate", at_least(20_000), at_least(40_000), "9,250"),),
        PROUTER,
    ),
    Probe(
        "connections",
        connections,
        (
            Row(
                "connections.rate",
                "GET /connections, 16 connections",
                "req/s",
                "rate",
                at_least(20_000),
                at_least(40_000),
                "9,140",
            ),
        ),
        PROUTER,
    ),
)
