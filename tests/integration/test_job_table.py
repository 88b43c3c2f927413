"""The job table over HTTP: pages of a long list, history of ended jobs, reasons and limits, safe retries."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from prouter.fabric.frames import pack_body, unpack_body
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

NO_PORT = {"port_expected_count": 0}
MANY = 100_000


@pytest.fixture
def path(router: Router, agent: Agent) -> Iterator[str]:
    """A new job's path; removed afterwards."""
    path = router.create(agent.uid)
    yield path
    router.post(path + "/remove")


# -- the list ---------------------------------------------------------------------------------------------------


def multiply(database: Path, count: int) -> None:
    """Copy the existing job `count` times, each copy older than the last; every tenth has another name.

    The copies are as an earlier version would have written them.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        cursor = connection.execute("SELECT * FROM jobs")
        columns = [one[0] for one in cursor.description]
        model = dict(zip(columns, cursor.fetchone(), strict=True))
        record = unpack_body(model["record"])
        rows = []
        for number in range(count):
            row = {**model, "uid": f"{number:032x}", "name": "tenth" if number % 10 == 0 else "many"}
            row["created_at"], row["size"] = model["created_at"] - number - 1, None
            told = {**record, "uid": row["uid"], "name": row["name"], "created_at": row["created_at"]}
            rows.append([{**row, "record": pack_body(told)}[name] for name in columns])
        marks = ",".join("?" * len(columns))
        connection.executemany(f"INSERT INTO jobs VALUES ({marks})", rows)


def test_a_hundred_thousand_ended_jobs_are_listed_in_milliseconds(launch: Callable[..., Any], work_dir: Path) -> None:
    state = work_dir / "state"
    router: Router = launch(start_router, state__dir=str(state))
    agent: Agent = launch(start_agent, router)
    first = router.create(agent.uid, "first")
    router.start(first, ["true"], **NO_PORT)
    router.post(first + "/wait")
    router.stop()
    agent.stop()
    (database,) = state.glob("*.sqlite*")
    multiply(database, MANY)
    router = launch(start_router, state__dir=str(state), jobs__history=2 * MANY)
    times: list[float] = []

    def page(session: requests.Session, **query: Any) -> dict[str, Any]:
        begun = time.perf_counter()
        answer = session.get(f"{router.url}/jobs", params=query, timeout=30)
        times.append(time.perf_counter() - begun)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    seen: set[str] = set()
    with requests.Session() as session:
        cursor = None
        while True:
            found = page(session, limit=1000, **({"cursor": cursor} if cursor else {}))
            assert len(found["jobs"]) == 1000 or found["next"] is None
            created = [job["created_at"] for job in found["jobs"]]
            assert created == sorted(created, reverse=True)
            assert not seen & {job["uid"] for job in found["jobs"]}
            seen |= {job["uid"] for job in found["jobs"]}
            cursor = found["next"]
            if cursor is None:
                break
        assert len(seen) == MANY + 1
        fastest: dict[str, float] = {}
        middle = page(session, limit=100)["next"]
        for _ in range(20):
            for query in (
                {},
                {"state": "FINISHED"},
                {"name": "tenth"},
                {"name": "tenth", "state": "FINISHED", "agent": agent.uid},
                {"cursor": middle},
            ):
                assert len(page(session, limit=100, **query)["jobs"]) == 100
                fastest[str(query)] = min(fastest.get(str(query), 1.0), times[-1])
            assert page(session, limit=100, name="nobody's") == {"jobs": [], "next": None}
            assert page(session, limit=100, state="RUNNING") == {"jobs": [], "next": None}
            assert [job["path"] for job in page(session, name="first")["jobs"]] == [first]
        # The fastest of twenty, which a busy machine does not slow down.
        assert max(fastest.values()) <= 0.05, fastest
        assert session.get(f"{router.url}/jobs?cursor=nonsense", timeout=30).status_code == 400
        assert session.get(f"{router.url}/jobs?state=ASLEEP", timeout=30).status_code == 400


def test_only_so_many_ended_jobs_are_kept(launch: Callable[..., Any]) -> None:
    router: Router = launch(start_router, jobs__history=5)
    agent: Agent = launch(start_agent, router)
    alive = router.create(agent.uid, "alive")
    paths = []
    for _ in range(12):
        paths.append(router.create(agent.uid))
        router.start(paths[-1], ["true"], **NO_PORT)
        router.post(paths[-1] + "/wait")

    def kept() -> list[str]:
        return [job["path"] for job in router.get("/jobs").json()["jobs"]]

    wait_until(lambda: kept() == [*paths[:-6:-1], alive])
    assert router.get(paths[0] + "/info").status_code == 404
    sandboxes = {path.split("/")[3] for path in [*paths[-5:], alive]}
    root = agent.directory / "jobs"
    wait_until(lambda: {one.name for one in root.iterdir() if len(one.name) == 32} == sandboxes)


# -- how jobs end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "name", "reason"),
    [
        ("exit 0", 0, None, "exited"),
        ("exit 255", 255, None, "exited"),
        ("kill -TERM $$", None, "SIGTERM", "signaled"),
        ("kill -SEGV $$", None, "SIGSEGV", "signaled"),
    ],
)
def test_endings_are_told_as_they_were(
    router: Router, path: str, script: str, code: int | None, name: str | None, reason: str
) -> None:
    router.start(path, ["sh", "-c", script], **NO_PORT)
    info = router.post(path + "/wait").json()
    assert (info["state"], info["exit_code"], info["signal"], info["reason"]) == ("FINISHED", code, name, reason)
    assert info["created_at"] <= info["started_at"] <= info["finished_at"]
    assert info["cpu_seconds"] >= 0
    assert router.get(path + "/info").json() == info


def test_signals_and_stop(router: Router, agent: Agent, path: str) -> None:
    script = "trap 'echo usr1' USR1; trap '' TERM; echo ready; while :; do sleep 0.02; done"
    router.start(path, ["sh", "-c", script], **NO_PORT)
    wait_until(lambda: router.get(path + "/logs/stdout").text == "ready\n")
    for name in ("USR1", "SIGUSR1"):
        assert router.post(path + "/signal", {"signal": name}).status_code == 200
    wait_until(lambda: "usr1" in router.get(path + "/logs/stdout").text)
    assert router.post(path + "/signal", {"signal": "NONSENSE"}).status_code == 400
    waited = router.post(path + "/wait?timeout=0.05")
    assert (waited.status_code, waited.json()["state"]) == (202, "RUNNING")
    assert router.post(path + "/stop", {"grace": 0.2}).status_code == 200
    info = router.post(path + "/wait?timeout=20")
    assert info.status_code == 200
    assert (info.json()["reason"], info.json()["signal"]) == ("stopped", "SIGKILL")
    assert router.post(path + "/signal", {"signal": "TERM"}).status_code == 409
    gentle = router.create(agent.uid)
    router.start(gentle, ["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"], **NO_PORT)
    wait_until(lambda: router.get(gentle + "/logs/stdout").text == "ready\n")
    assert router.post(gentle + "/stop", {"grace": 20}).status_code == 200
    info = router.post(gentle + "/wait")
    assert (info.json()["reason"], info.json()["exit_code"]) == ("stopped", 5)
    router.post(gentle + "/remove")


@pytest.mark.parametrize(
    ("limits", "code", "reason"),
    [
        ({"timeout": 0.3}, "import time; time.sleep(60)", "timeout"),
        ({"memory": 60_000_000}, "x = bytearray(200_000_000)\nwhile True: pass", "memory"),
        ({"cpu_seconds": 0.3}, "while True: pass", "cpu"),
        (
            {"processes": 5},
            "import os, time\nfor _ in range(20): os.fork() or time.sleep(60)\ntime.sleep(60)",
            "processes",
        ),
        (
            {"sandbox_size": 1_000_000},
            "import time; open('f', 'wb').write(bytes(5_000_000)); time.sleep(60)",
            "sandbox",
        ),
    ],
)
def test_the_limit_that_ended_a_job_is_its_reason(
    router: Router, path: str, limits: dict[str, Any], code: str, reason: str
) -> None:
    router.start(path, ["python3", "-I", "-S", "-c", code], limits=limits, **NO_PORT)
    info = router.post(path + "/wait?timeout=25").json()
    assert (info["state"], info["reason"]) == ("FINISHED", reason), info
    assert "limit" in info["error"]


def test_open_files_are_limited(router: Router, path: str) -> None:
    router.start(path, ["sh", "-c", "ulimit -n"], limits={"open_files": 77}, **NO_PORT)
    router.post(path + "/wait")
    assert router.get(path + "/logs/stdout").text == "77\n"


# -- safe repeats -----------------------------------------------------------------------------------------------


def test_repeats_over_a_killed_broker_are_done_once(launch: Callable[..., Any], work_dir: Path) -> None:
    router: Router = launch(start_router)
    agent: Agent = launch(start_agent, router)
    mark = work_dir / "marks"
    chosen = {"type": "uid", "uid": agent.uid}
    start = {"args": ["sh", "-c", f"echo x >> {mark}; sleep 60"], "env": {}, **NO_PORT}
    create_key, start_key, run_key = ({"Idempotency-Key": uuid.uuid4().hex} for _ in range(3))
    run = {"name": "run", "agent": chosen, **start}

    def all_three() -> list[str]:
        created = router.post("/jobs/create", {"name": "once", "agent": chosen}, headers=create_key)
        started = router.post(created.json()["path"] + "/start", start, headers=start_key)
        ran = router.post("/jobs/run", run, headers=run_key)
        assert [answer.status_code for answer in (created, started, ran)] == [200] * 3, (started.text, ran.text)
        assert started.json()["state"] == ran.json()["state"] == "RUNNING"
        return [answer.json()["path"] for answer in (created, started, ran)]

    first = all_three()
    old = router.child("broker")
    with ThreadPoolExecutor(4) as pool:
        repeats = [pool.submit(all_three) for _ in range(4)]
        os.kill(old, signal.SIGKILL)
        assert [repeat.result(60) for repeat in repeats] == [first] * 4
    wait_until(lambda: router.child("broker") != old)
    assert all_three() == first
    wait_until(lambda: mark.exists() and mark.read_text() == "x\nx\n")
    assert {job["path"] for job in router.get("/jobs").json()["jobs"]} == set(first)
    other = router.post(first[0] + "/start", start, headers={"Idempotency-Key": "other"})
    assert other.status_code == 409
