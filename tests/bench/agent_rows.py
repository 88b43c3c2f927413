"""Rows about many linked agents: their cost while idle, and the cost of dashboards that poll them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from tests.bench import load
from tests.bench.load import LoadFailed
from tests.bench.processes import usage
from tests.bench.rows import Probe, Row, Settings, at_most
from tests.bench.stack import ROOT, Prouter, Stack, wait_for

__all__ = ["PROBES"]

POLLERS = 10
POLLS = 100
"""Requests per second of GET /connections, from all dashboards together."""


@contextlib.contextmanager
def agents(stack: Prouter, count: int) -> Iterator[None]:
    """Keep `count` fake agents linked to the router meanwhile."""
    command = [sys.executable, "-m", "tests.bench.fake_agents", stack.agents_endpoint, str(count)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, env=environ)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line.startswith(b"linked"):
            raise LoadFailed(f"the fake agents ended: {child.wait()}")
        with contextlib.closing(stack.connect()) as http:
            wait_for("all agents", lambda: len(http.request("GET", "/connections").json()["connections"]) >= count)
        yield
    finally:
        child.kill()
        child.wait()


def broker_share(stack: Stack, seconds: float) -> float:
    """Return the per cent of one core that the broker uses without any requests."""
    brokers = [process for process in stack.processes() if process.role == "broker"]
    before = sum(used.cpu for one in brokers if (used := usage(one)))
    started = time.monotonic()
    threading.Event().wait(seconds)
    after = sum(used.cpu for one in brokers if (used := usage(one)))
    if not brokers:
        raise LoadFailed("no broker found")
    return 100 * (after - before) / (time.monotonic() - started)


def etag(stack: Stack) -> str:
    """The ETag that GET /connections has now.

    Raises:
        LoadFailed: asking with it does not give 304.
    """
    with contextlib.closing(stack.connect()) as http:
        tag = http.request("GET", "/connections").headers.get("etag", "")
        again = http.request("GET", "/connections", headers={"If-None-Match": tag})
    if again.status != 304:
        raise LoadFailed(f"If-None-Match: {tag} gives {again.status}, not 304")
    return tag


@contextlib.contextmanager
def polls(stack: Stack) -> Iterator[None]:
    """Let dashboards poll GET /connections with the last ETag they saw, `POLLS` times a second, meanwhile."""
    stop = threading.Event()

    def run() -> None:
        tag = ""
        with contextlib.closing(stack.connect()) as http:
            while not stop.wait(POLLERS / POLLS):
                answer = http.request("GET", "/connections", headers={"If-None-Match": tag} if tag else {})
                tag = answer.headers.get("etag", tag)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(POLLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def many_agents(stack: Stack, settings: Settings) -> dict[str, float]:
    """Measure the idle cost, then the cost of dashboards."""
    assert isinstance(stack, Prouter)
    with agents(stack, settings.agents):
        idle = broker_share(stack, 3 * settings.seconds)
        full = load.get(stack, "!/connections", 1, settings.seconds)
        unchanged = f'wrk.headers["If-None-Match"] = {lua_text(etag(stack))}'
        same = load.get(stack, "!/connections", 1, settings.seconds, unchanged)
        alone = load.get(stack, "/", 16, settings.seconds)
        with polls(stack):
            beside = load.get(stack, "/", 16, settings.seconds)
    return {"idle": idle, "full": full.p99, "same": same.p99, "beside": beside.p99 / alone.p99}


def lua_text(text: str) -> str:
    """Return a Lua string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


PROBES = (
    Probe(
        "agents",
        many_agents,
        (
            Row("agents.idle", "many agents: idle broker, share of a core", "%", "idle", at_most(10), higher=False),
            Row("agents.full", "many agents: GET /connections, p99", "ms", "full", at_most(50), higher=False),
            Row("agents.same", "many agents: the same, 304, p99", "ms", "same", at_most(3), higher=False),
            Row("agents.beside", "small GET p99 beside 100 polls/s", "x alone", "beside", at_most(1.2), higher=False),
        ),
        ("prouter2",),
        once=True,
    ),
)
