"""``/metrics`` of any worker counts for all workers, and its counters never go down."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.programs import needed, program
from tests.support.worker_clients import clients_of_workers

WORKERS = 3
JOB_ANSWERS = 'prouter_worker_requests_total{method="GET",status="2xx",to="job"}'
Samples = dict[str, float]


@pytest.fixture
def place(launch: Callable[..., Any]) -> tuple[Router, Agent]:
    router = launch(start_router, workers=WORKERS)
    return router, launch(start_agent, router)


def read(text: str) -> tuple[Samples, Samples]:
    """Samples by name and labels: those of counters and histograms, and the others."""
    counted: Samples = {}
    others: Samples = {}
    for family in text_string_to_metric_families(text):
        target = counted if family.type in ("counter", "histogram") else others
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            target[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return counted, others


def workers_of(router: Router) -> list[int]:
    return [child.pid for child in psutil.Process(router.child("gunicorn")).children()]


def ask(url: str, times: int) -> None:
    """Requests that many workers get: each over a connection of its own, several at once."""
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: requests.get(url, timeout=30).status_code, range(times))) == {200}


def test_every_worker_tells_the_same_and_nothing_ever_goes_down(place: tuple[Router, Agent], jobs: Path) -> None:
    router, agent = place
    job = router.url + router.serve(agent.uid, jobs / "fast_server.py") + "/http/"
    seen: Samples = {}
    done = 0

    def check(expected: int) -> None:
        """Each worker in turn tells of all requests so far; no counter is lower than any told before."""
        clients = clients_of_workers(router, workers_of(router))
        for client in clients.values():
            status, text = client.ask("GET", "/metrics")
            counted, _ = read(text)
            assert status == 200
            assert counted[JOB_ANSWERS] == expected
            assert counted['prouter_worker_response_seconds_count{to="job"}'] == expected
            kept = {name: value for name, value in seen.items() if not name.startswith("prouter_broker_")}
            assert {name: counted.get(name) for name in kept if counted.get(name, -1) < kept[name]} == {}
            seen.update(counted)
            client.close()

    ask(job, 60)
    done += 60
    check(done)

    (victim, *_) = workers_of(router)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(pids := workers_of(router)) == WORKERS and victim not in pids)
    check(done)
    ask(job, 30)
    done += 30
    check(done)

    old = set(workers_of(router))
    os.kill(router.child("gunicorn"), signal.SIGHUP)
    wait_until(lambda: len(pids := set(workers_of(router))) == WORKERS and not pids & old)
    ask(job, 10)
    done += 10
    check(done)

    gunicorn = router.child("gunicorn")
    os.kill(gunicorn, signal.SIGKILL)
    wait_until(lambda: router.child("gunicorn") != gunicorn)
    wait_until(lambda: len(workers_of(router)) == WORKERS and not any(map(psutil.pid_exists, old)))
    wait_until(lambda: requests.get(router.url + "/readyz", timeout=30).ok)
    check(done)

    router.kill_broker()
    wait_until(lambda: read(router.get("/metrics").text)[1]["prouter_broker_up"] == 1)
    check(done)


def test_gauges_are_sums_over_the_workers(place: tuple[Router, Agent]) -> None:
    router, _ = place
    clients = clients_of_workers(router, workers_of(router))

    def shown() -> Samples:
        return read(router.get("/metrics").text)[1]

    wait_until(lambda: shown()["prouter_worker_connections"] >= WORKERS)
    resident = sum(psutil.Process(pid).memory_info().rss for pid in clients)
    assert shown()["prouter_worker_resident_memory_bytes"] == pytest.approx(resident, rel=0.5)
    assert shown()["prouter_worker_greenlets"] > 0
    for client in clients.values():
        client.close()
    wait_until(lambda: shown()["prouter_worker_connections"] <= 1)


@needed("promtool")
def test_promtool_takes_the_answer(router: Router, agent: Agent) -> None:
    router.get("/nowhere")
    answer = router.get("/metrics")
    tool = program("promtool")
    assert tool is not None
    done = subprocess.run([tool, "check", "metrics"], input=answer.content, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
