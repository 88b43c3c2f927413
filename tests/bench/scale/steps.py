"""The measurements, each with a router of its own, so that what one leaves behind burdens no other.

CPU time is that of /proc/PID/stat, memory is VmRSS. Agents link over CURVE unless a step says something else.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench import load
from tests.bench.load import LoadFailed
from tests.bench.scale.disturbance import Disturbance
from tests.bench.scale.figures import Figure, Results
from tests.bench.scale.fleet import Fleet
from tests.bench.scale.history import write_history
from tests.bench.scale.router import ScaleRouter

__all__ = ["Scale", "ageing_step", "agents_step", "api_step", "jobs_step"]

MIB = 1 << 20
_BEATS, _EACH = 320, 40
"""Heartbeats after which libzmq takes no more memory, and those between two looks at it."""
_LINKING = 120.0
"""Seconds that agents have to link at most, before a measurement counts as failed."""


@dataclass(frozen=True)
class Scale:
    """Amounts of a run.

    Attributes:
        levels: numbers of agents.
        restarts: those at which the router is restarted.
        ageing: agents whose memory is measured after many heartbeats; 0 to leave that out.
        seconds: of each measurement by time.
        settling: seconds after the last agent has linked until the broker counts as idle.
        jobs: running jobs in all.
        job_agents: agents that have them.
        history: ended jobs.
        encrypted: whether agents link over CURVE.
    """

    levels: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 30_000)
    restarts: tuple[int, ...] = (2_000, 10_000, 30_000)
    ageing: int = 500
    seconds: float = 4.0
    settling: float = 10.0
    jobs: int = 100_000
    job_agents: int = 10_000
    history: int = 1_000_000
    encrypted: bool = True


BOUNDS: dict[str, tuple[dict[int, float], dict[int, float]]] = {
    "link": ({10_000: 15}, {30_000: 30}),
    "memory": ({10_000: 450}, {30_000: 1024}),
    "idle": ({10_000: 20}, {30_000: 40}),
    "back": ({2_000: 10}, {10_000: 20}),
}
"""What must be and what is strived for, by figure and number of agents."""


@contextlib.contextmanager
def linked(router: ScaleRouter, agents: int, jobs: int = 0) -> Iterator[tuple[Fleet, list[tuple[float, int]]]]:
    """Keep so many agents linked meanwhile; with the numbers that were linked over time."""
    fleet = Fleet(router.agents_endpoint, router.key, agents, jobs)
    try:
        fleet.grow(agents)
        yield fleet, fleet.await_linked(agents, _LINKING)
    finally:
        fleet.close()


@contextlib.contextmanager
def running(router: ScaleRouter) -> Iterator[ScaleRouter]:
    """Keep a router running meanwhile."""
    try:
        router.launch()
        yield router
    finally:
        router.close()


def api_step(scale: Scale, results: Results) -> None:
    """Rates of the requests that dashboards send, with one agent."""
    with running(ScaleRouter(encrypted=scale.encrypted)) as router:
        for path in ("/info", "/connections"):
            others = Disturbance()
            seen = load.get(router, f"!{path}", 16, scale.seconds)
            title = f"GET {path}, 16 connections, 2 workers"
            results.figures.append(
                Figure(f"api{path}", title, "req/s", seen.rate, 20_000, 40_000, higher=True, disturbed=others.share)
            )


def agents_step(scale: Scale, agents: int, results: Results) -> None:
    """Link so many agents at once; what they cost while idle, and what requests cost beside them."""
    with running(ScaleRouter(encrypted=scale.encrypted)) as router:
        base = router.used("broker").resident
        _proxied(scale, router, 0, results)
        others = Disturbance()
        began = router.used("broker").cpu
        with linked(router, agents) as (fleet, seen):
            _add(results, "link", "time to link", "s", agents, seen[-1][0], others)
            cost = 1e6 * (router.used("broker").cpu - began) / agents
            _add(results, "handshake", "broker CPU per handshake", "µs", agents, cost, others)
            _idle(scale, router, fleet, agents, base, results)
            _proxied(scale, router, agents, results)
            _dashboards(scale, router, agents, results)
            if agents in scale.restarts:
                _restart(router, fleet, agents, results)


def _idle(scale: Scale, router: ScaleRouter, fleet: Fleet, agents: int, base: int, results: Results) -> None:
    """CPU and memory of processes that have nothing to do but keep links alive."""
    time.sleep(scale.settling)
    others = Disturbance()
    share = router.share_of_core("broker", scale.seconds)
    _add(results, "idle", "idle broker, share of a core", "%", agents, share, others)
    results.point("idle", "heartbeats", agents, share)
    memory = router.used("broker").resident
    _add(results, "memory", "broker's memory", "MiB", agents, memory / MIB, others)
    results.point("memory", "broker", agents, memory / MIB)
    _add(results, "agent", "broker's memory per agent", "KiB", agents, (memory - base) / agents / 1024, others)
    worker = router.used("worker 1").resident
    results.point("memory", "worker", agents, worker / MIB)
    fleet.tell_load(5.0)
    others = Disturbance()
    share = router.share_of_core("broker", scale.seconds)
    fleet.tell_load(0)
    _add(results, "loads", "the same while agents tell their load every 5 s", "%", agents, share, others)
    results.point("idle", "heartbeats and loads", agents, share)
    _add(results, "lag", "longest iteration of its event loop", "ms", agents, router.lag(), others)


def _proxied(scale: Scale, router: ScaleRouter, agents: int, results: Results) -> None:
    """Small requests to a job, beside so many agents."""
    others = Disturbance()
    one = load.get(router, "/", 1, scale.seconds)
    many = load.get(router, "/", 16, scale.seconds)
    results.point("requests", "p50, 1 connection", agents, one.p50)
    results.point("requests", "p99, 1 connection", agents, one.p99)
    results.point("requests", "p99, 16 connections", agents, many.p99)
    if agents:
        _add(results, "get.p50", "small GET to a job, 1 connection, p50", "ms", agents, one.p50, others)
        _add(results, "get.p99", "the same, p99", "ms", agents, one.p99, others)


def _dashboards(scale: Scale, router: ScaleRouter, agents: int, results: Results) -> None:
    """The list of connections, whole and unchanged."""
    others = Disturbance()
    with contextlib.closing(router.connect()) as http:
        answer = http.request("GET", "/connections")
    _add(results, "list.size", "GET /connections", "KiB", agents, len(answer.body) / 1024, others)
    seen = load.get(router, "!/connections", 1, scale.seconds)
    _add(results, "list.p99", "the same, p99", "ms", agents, seen.p99, others)
    known = f"wrk.headers[\"If-None-Match\"] = '{answer.headers['etag']}'"
    seen = load.get(router, "!/connections", 1, scale.seconds, known)
    _add(results, "list.same", "the same, 304, p99", "ms", agents, seen.p99, others)


def _restart(router: ScaleRouter, fleet: Fleet, agents: int, results: Results) -> None:
    """End the router and start it again; its agents link again by themselves."""
    before, others = fleet.report, Disturbance()
    stopped = router.stop()
    seen, took, ready = _start_again(router, fleet, agents)
    _add(results, "back", "all agents back after the router's start", "s", agents, took, others)
    _add(results, "ready", "ready after its start", "s", agents, ready, others)
    attempts = (fleet.report.attempts - before.attempts) / agents
    _add(results, "attempts", "attempts of an agent to connect meanwhile", "", agents, attempts, others)
    _add(results, "back.lag", "longest iteration of the event loop meanwhile", "ms", agents, router.lag(), others)
    results.notes.append(f"{agents:,} agents: the router took {stopped:.1f} s to end")
    for at, count in seen:
        results.point("restart", f"{agents:,} agents", at, 100 * count / agents)


def _start_again(router: ScaleRouter, fleet: Fleet, agents: int) -> tuple[list[tuple[float, int]], float, float]:
    """Start the router; the agents linked over time, the seconds until all were, and those until it was ready."""
    seen: list[tuple[float, int]] = []
    failures: list[Exception] = []

    def follow() -> None:
        try:
            seen.extend(fleet.await_linked(agents, _LINKING))
        except LoadFailed as error:
            failures.append(error)

    watcher = threading.Thread(target=follow)
    watcher.start()
    ready = router.start_again()
    watcher.join()
    if failures:
        raise failures[0]
    return seen, seen[-1][0], ready


def ageing_step(scale: Scale, results: Results) -> None:
    """What agents take once libzmq's queues have been used from end to end, as after ten minutes of heartbeats."""
    with running(ScaleRouter(job=False, encrypted=scale.encrypted)) as router:
        base = router.used("broker").resident
        with linked(router, scale.ageing) as (fleet, _):
            others = Disturbance()
            for beats in range(0, _BEATS + 1, _EACH):
                if beats:
                    fleet.ping(_EACH)
                each = (router.used("broker").resident - base) / scale.ageing / 1024
                results.point("ageing", "broker's memory per agent", beats, each)
            title = f"broker's memory per agent after {_BEATS} heartbeats"
            _add(results, "aged", title, "KiB", scale.ageing, each, others)


def jobs_step(scale: Scale, results: Results) -> None:
    """Many running jobs, and a long history: memory, lists, and a restart with all of it."""
    router = ScaleRouter(f"jobs.history={max(1, scale.history)}", job=False, encrypted=scale.encrypted)
    many = f"{scale.history:,} ended jobs"
    try:
        router.launch()
        base = router.used("broker").resident
        router.stop()
        router.database.unlink()
        write_history(router.database, scale.history, scale.job_agents)
        others = Disturbance()
        ready = router.start_again()
        memory = router.used("broker").resident
        for figure in (
            Figure("history.ready", f"ready after its start, {many}", "s", ready, disturbed=others.share),
            Figure("history.memory", f"broker's memory, {many}", "MiB", memory / MIB),
            Figure("history.each", "the same for each of them", "B", (memory - base) / max(1, scale.history)),
        ):
            results.figures.append(figure)
        with linked(router, scale.job_agents):
            before = router.used("broker").resident
        _with_jobs(scale, router, before, results)
    finally:
        router.close()


def _with_jobs(scale: Scale, router: ScaleRouter, before: int, results: Results) -> None:
    each = max(1, scale.jobs // scale.job_agents)
    jobs = each * scale.job_agents
    alive = f"{jobs:,} running jobs"
    with linked(router, scale.job_agents, each) as (fleet, seen):
        _await("all jobs", lambda: router.metric("prouter_broker_jobs_RUNNING") >= jobs)
        memory, worker = router.used("broker").resident, router.used("worker 1").resident
        for figure in (
            Figure("jobs.link", f"time to link {scale.job_agents:,} agents with {alive}", "s", seen[-1][0]),
            Figure("jobs.each", f"broker's memory for each of {alive}", "B", (memory - before) / jobs),
            Figure("jobs.memory", "broker's memory, all in all", "MiB", memory / MIB),
            Figure("jobs.worker", "a worker's memory", "MiB", worker / MIB),
        ):
            results.figures.append(figure)
        for key, query, title in _LISTS:
            others = Disturbance()
            took = _page(router, query)
            title = f"page of 100 jobs, {title}, p50"
            results.figures.append(Figure(f"page.{key}", title, "ms", took, 10, disturbed=others.share))
        _restart_with_jobs(scale, router, fleet, alive, results)


def _restart_with_jobs(scale: Scale, router: ScaleRouter, fleet: Fleet, alive: str, results: Results) -> None:
    before, others = fleet.report, Disturbance()
    stopped = router.stop()
    seen, took, ready = _start_again(router, fleet, scale.job_agents)
    attempts = (fleet.report.attempts - before.attempts) / scale.job_agents
    for figure in (
        Figure("jobs.ready", f"ready after its start, with {alive}", "s", ready, disturbed=others.share),
        Figure("jobs.back", "all agents back, with their jobs", "s", took, disturbed=others.share),
        Figure("jobs.attempts", "attempts of an agent to connect meanwhile", "", attempts),
    ):
        results.figures.append(figure)
    for at, count in seen:
        results.point("restart", f"{scale.job_agents:,} agents, {alive}", at, 100 * count / scale.job_agents)
    results.notes.append(f"with {alive}: the router took {stopped:.1f} s to end")


_LISTS = (
    ("newest", "/jobs?limit=100", "the newest"),
    ("running", "/jobs?limit=100&state=RUNNING", "of one state"),
    ("name", "/jobs?limit=100&name=batch-0007", "of one name"),
    ("both", "/jobs?limit=100&state=FINISHED&name=batch-0007", "of one state and name"),
)


def _page(router: ScaleRouter, query: str) -> float:
    """Milliseconds that a page takes: the median of several, each after the one before it."""
    times = []
    with contextlib.closing(router.connect()) as http:
        cursor = ""
        for _ in range(30):
            began = time.perf_counter()
            answer = http.request("GET", query + cursor)
            times.append(1000 * (time.perf_counter() - began))
            page = answer.json() if answer.status == 200 else {}
            if not page.get("jobs"):
                raise LoadFailed(f"GET {query}{cursor}: {answer.status} {answer.body[:200]!r}")
            cursor = f"&cursor={page['next']}" if page.get("next") else ""
    return statistics.median(times)


def _await(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LINKING
    while not condition():
        if time.monotonic() > deadline:
            raise LoadFailed(f"{what}: not within {_LINKING:g} s")
        threading.Event().wait(0.2)


def _add(results: Results, key: str, title: str, unit: str, agents: int, value: float, others: Disturbance) -> None:
    """Add a figure about so many agents, with its bounds."""
    must, goal = (bounds.get(agents) for bounds in BOUNDS.get(key, ({}, {})))
    results.figures.append(
        Figure(f"{key}.{agents}", f"{agents:,} agents: {title}", unit, value, must, goal, disturbed=others.share)
    )
