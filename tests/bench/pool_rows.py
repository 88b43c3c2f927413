"""Rows about jobs that are kept ready: JupyterLab from the pool, beside one that has to start."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.client import Connection
from tests.bench.load import LoadFailed
from tests.bench.rows import Probe, Row, Settings, at_most
from tests.bench.stack import ROOT, Prouter, Stack, wait_for

__all__ = ["PROBES"]

READY = 3
"""Jobs that are kept ready: so many are asked for one after another, then the pool fills again."""
LAB = {"args": ["jupyter", "lab"], "expose": {"preset": "jupyterlab"}}
_FILLING = 120.0
"""Seconds that it may take to fill the pool."""


def jupyterlab(stack: Stack, settings: Settings) -> dict[str, float]:
    """JupyterLab by a template, with ready jobs and without one."""
    assert isinstance(stack, Prouter)
    with _agent(stack) as agent, contextlib.closing(stack.connect(timeout=_FILLING)) as http:
        warm = [seconds for _ in range(1 + settings.rounds) for seconds in _given(http, agent)]
        wait_for("jobs that are ready", lambda: _ready(http, agent) == READY, _FILLING)
        cold = [_run(http, agent, "cold") for _ in range(2)]
    return {"warm": statistics.median(warm) * 1000, "cold": statistics.median(cold) * 1000}


@contextlib.contextmanager
def _agent(stack: Prouter) -> Iterator[str]:
    """Keep one more agent, with templates of JupyterLab, linked to the router meanwhile; give its uid.

    Raises:
        LoadFailed: JupyterLab is not installed beside Python, or the agent does not start.
    """
    programs = Path(sys.executable).parent
    if shutil.which("jupyter", path=str(programs)) is None:
        raise LoadFailed("JupyterLab is not installed in this environment")
    pool = {"warm": {**LAB, "size": READY}, "cold": {**LAB, "size": 0}}
    settings = {
        "client.address": stack.agents_endpoint.removeprefix("tcp://"),
        "state.dir": str(stack.directory / "pool"),
        "jobs.pool": pool,
    }
    command = [sys.executable, "-m", "prouter", "agent"]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value!r}")]
    environ = {**stack.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    with (stack.directory / "pool.err").open("ab") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environ)
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        if not line.startswith("ready agent="):
            raise LoadFailed(f"the agent ended: {child.wait()}")
        yield line.removeprefix("ready agent=").split()[0]
    finally:
        child.terminate()
        child.wait()


def _given(http: Connection, agent: str) -> list[float]:
    """Seconds until each of the ready jobs was given."""
    wait_for("jobs that are ready", lambda: _ready(http, agent) == READY, _FILLING)
    return [_run(http, agent, "warm") for _ in range(READY)]


def _ready(http: Connection, agent: str) -> int:
    listed: list[dict[str, Any]] = http.request("GET", "/connections").json()["connections"]
    return sum(one["pool"].get("warm", {"ready": 0})["ready"] for one in listed if one["peer"]["auth"]["uid"] == agent)


def _run(http: Connection, agent: str, template: str) -> float:
    """Seconds until a job of the template runs and its server answers; the job is removed."""
    started = time.perf_counter()
    job = http.post("/jobs/run", {"name": "lab", "template": template, "agent": {"type": "uid", "uid": agent}})
    took = time.perf_counter() - started
    http.post(f"{job['path']}/remove")
    return took


PROBES = (
    Probe(
        "pool",
        jupyterlab,
        (
            Row(
                "pool.warm", "JupyterLab that is kept ready, p50", "ms", "warm", at_most(100), at_most(20), higher=False
            ),
            Row("pool.cold", "the same, started on request", "ms", "cold", higher=False),
        ),
        ("prouter2",),
        once=True,
    ),
)
