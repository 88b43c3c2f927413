"""Rows about the router's queue with 10,000 waiting jobs: how long a decision takes, and how late the event loop is."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prouter.broker.queue.item import Item, Shape
from prouter.broker.queue.job_queue import JobQueue
from prouter.broker.queue.order import Key
from prouter.resources import fits
from tests.bench.client import Connection
from tests.bench.rows import Probe, Row, Settings, at_most
from tests.bench.stack import Prouter, Stack

__all__ = ["PROBES", "decisions"]

WAITING = 10_000
_OWNERS = 100
_CLIENTS = 16
_TOTAL = {"cpus": 64.0, "gpus": 8.0}


class _Nowhere:
    """Actions that do nothing: only the decision is measured."""

    def save(self, item: Item, then: Callable[[], None] | None = None) -> None:
        pass

    def erase(self, item: Item) -> None:
        pass

    claim = release = create = start_job = erase

    def host(self, item: Item, now: float) -> str | None:
        return "agent"


def decisions(shapes: int, rounds: int = 300) -> list[tuple[float, float]]:
    """Seconds of CPU time of each decision, and of its longest step, with `WAITING` jobs of so many shapes.

    Only the last shape fits. Between two steps, which look at 256 shapes each, the broker does its other work.
    """
    queue = JobQueue(_Nowhere(), reserve_after=1e9)
    for number in range(WAITING):
        wanted = {"cpus": 65.0 + number % shapes if number % shapes < shapes - 1 else 1.0}
        shape = Shape(json.dumps(wanted), {"resources": wanted})
        queue.add(Item(str(number), "", f"owner {number % _OWNERS}", shape, 1e12), _nothing)

    def suits(shape: Shape) -> bool:
        return fits(shape.selector["resources"], _TOTAL, {"cpus": 3.0})

    took = []
    for number in range(rounds):
        after: Key | None = None
        steps, placed, more = [], False, True
        while more:
            began = time.thread_time()
            placed, after = queue.offer("agent", suits, 0.0, after=after, most=256)
            steps.append(time.thread_time() - began)
            more = not placed and after is not None
        assert placed
        took.append((sum(steps), max(steps)))
        wanted = {"cpus": 1.0}
        queue.add(
            Item(f"more {number}", "", "another", Shape(json.dumps(wanted), {"resources": wanted}), 1e12), _nothing
        )
    return took


def _nothing() -> None:
    """Nobody waits until a job is stored."""


def decide(_stack: Stack, _settings: Settings) -> dict[str, float]:
    """The decision alone, with one shape of jobs, with a hundred, and with as many shapes as jobs."""
    one, hundred = (statistics.median(whole for whole, _ in decisions(shapes)) for shapes in (1, 100))
    step = statistics.median(longest for _, longest in decisions(WAITING, 10))
    return {"one": one * 1000, "hundred": hundred * 1000, "all": step * 1000}


def lag(stack: Stack, _settings: Settings) -> dict[str, float]:
    """The longest iteration of the broker's event loop while 10,000 jobs wait and others are queued and removed."""
    assert isinstance(stack, Prouter)
    body = {"name": "waits", "agent": {"type": "any", "require": {"no agent has this": 1}}, "queue": {"timeout": 3600}}

    def fill(count: int) -> list[str]:
        with contextlib.closing(stack.connect(timeout=60.0)) as http:
            return [http.post("/jobs/create", body, expect=202)["path"] for _ in range(count)]

    with ThreadPoolExecutor(_CLIENTS) as pool, contextlib.closing(stack.connect(timeout=60.0)) as http:
        began = time.perf_counter()
        filled = list(pool.map(fill, [WAITING // _CLIENTS] * _CLIENTS))
        rate = WAITING / (time.perf_counter() - began)
        lags = [_lag(http)]
        for path in filled[0][:200]:
            http.post(f"{path}/remove")
            http.post("/jobs/create", body, expect=202)
            http.request("GET", "/jobs?state=NEW&limit=100")
        lags.append(_lag(http))
        list(pool.map(lambda paths: _remove(stack, paths), filled))
    return {"lag": max(lags) * 1000, "rate": rate}


def _lag(http: Connection) -> float:
    text = http.request("GET", "/metrics").body.decode()
    return float(re.findall(r"^prouter_broker_loop_lag_max_seconds (\S+)", text, re.MULTILINE)[0])


def _remove(stack: Prouter, paths: list[str]) -> None:
    with contextlib.closing(stack.connect(timeout=60.0)) as http:
        for path in paths:
            http.request("POST", f"{path}/remove")


PROBES = (
    Probe(
        "queue",
        decide,
        (
            Row(
                "queue.one", "decision, 10,000 jobs wait, all alike", "ms", "one", at_most(5), at_most(1), higher=False
            ),
            Row("queue.hundred", "the same, of 100 shapes", "ms", "hundred", at_most(5), at_most(1), higher=False),
            Row(
                "queue.all",
                "longest step of it, each of another shape",
                "ms",
                "all",
                at_most(50),
                at_most(5),
                higher=False,
            ),
        ),
        ("prouter2",),
        once=True,
    ),
    Probe(
        "queue.router",
        lag,
        (
            Row("queue.lag", "longest loop iteration, 10,000 jobs wait", "ms", "lag", at_most(50), higher=False),
            Row("queue.rate", "jobs queued by 16 clients", "1/s", "rate"),
        ),
        ("prouter2",),
        once=True,
    ),
)
