"""The whole router restarts, drains or meets a broken database."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.clients import request
from tests.faults.load import Load
from tests.faults.stand import Stand
from tests.support.ports import free_port
from tests.support.processes import Router, start_agent, start_router, wait_until

Launch = Callable[..., Any]


def fixed(work_dir: Path) -> dict[str, Any]:
    """Settings with which a restarted router is what it was."""
    state = {"state__dir": str(work_dir / "state"), "state__run_dir": str(work_dir / "run")}
    return {"control__port": free_port(), "server__port": free_port(), **state}


def alone(launch: Launch, work_dir: Path) -> tuple[dict[str, Any], Stand]:
    """A router with fixed ports and an agent."""
    settings = fixed(work_dir)
    router = launch(start_router, **settings)
    it = Stand(router, launch(start_agent, router), work_dir / "marks")
    it.serve()
    return settings, it


def kill_whole(router: Router) -> None:
    """SIGKILL to every process of a router, as a power failure would end them."""
    parent = router.child("gunicorn")
    workers = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    for pid in (router.pid, router.child("broker"), parent, *workers):
        os.kill(pid, signal.SIGKILL)
    router.popen.wait(10)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of 4 MiB at `place`."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs (root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """Leave no room beside `path`."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_after_a_power_failure_the_table_is_there_at_once_and_paths_work_when_agents_are_back(
    launch: Launch, work_dir: Path
) -> None:
    settings, it = alone(launch, work_dir)
    ended = it.run("ended", "exit 3")
    assert it.router.post(ended + "/wait").json()["exit_code"] == 3
    known = {info["path"]: info for info in it.router.get("/jobs").json()["jobs"]}
    os.kill(it.agent.pid, signal.SIGSTOP)
    try:
        kill_whole(it.router)
        again = it.router = launch(start_router, **settings)
        listed = {info["path"]: info for info in again.get("/jobs").json()["jobs"]}
        assert listed.keys() == known.keys()
        assert listed[it.bytes_job]["confirmed"] is False
        assert listed[it.bytes_job]["pid"] == known[it.bytes_job]["pid"]
        assert listed[ended]["exit_code"] == 3
        held: list[requests.Response] = []
        client = threading.Thread(target=lambda: held.append(again.get(it.bytes_job + "/http/")))
        client.start()
    finally:
        os.kill(it.agent.pid, signal.SIGCONT)
    client.join(20)
    assert [answer.text for answer in held] == ["hello"], "a request is held until the agent is back"
    wait_until(lambda: again.get(it.bytes_job + "/info").json()["confirmed"])
    with Load() as load:
        it.wait_everywhere(load, 3)
        it.end_waits(3)
    assert again.post(ended + "/remove").status_code == 200
    it.assert_nothing_left()


def test_a_router_goes_away_and_comes_back_while_a_job_ends(launch: Launch, work_dir: Path) -> None:
    settings, it = alone(launch, work_dir)
    short = it.run("short", "sleep 1; exit 5")
    assert it.router.stop() == 0
    wait_until(lambda: not it.pids_of_job(short), 10)
    it.router = launch(start_router, **settings)
    wait_until(lambda: it.router.get(short + "/info").json()["state"] == "FINISHED")
    assert it.router.get(short + "/info").json()["exit_code"] == 5
    assert request(it.router.url, "GET", it.bytes_job + "/info")["state"] == "RUNNING"


def test_a_broken_database_is_set_aside_and_agents_tell_their_jobs_anew(launch: Launch, work_dir: Path) -> None:
    settings, it = alone(launch, work_dir)
    kill_whole(it.router)
    database = work_dir / "state" / "router.sqlite"
    for left in database.parent.glob("router.sqlite*"):
        left.write_bytes(b"this is no database " * 4096)
    again = it.router = launch(start_router, **settings)
    aside = [path.name for path in database.parent.iterdir() if path.name.startswith("router.sqlite")]
    assert len(aside) > 1, aside
    assert "event=database_set_aside" in again.log.read_text(), again.log_end()
    wait_until(lambda: len(again.get("/jobs").json()["jobs"]) == 4, what="the agent announces its jobs")
    assert again.get(it.bytes_job + "/http/").text == "hello"
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_router_on_a_full_disk_goes_on_starts_again_and_writes_when_there_is_room(
    launch: Launch, work_dir: Path
) -> None:
    state = work_dir / "state"
    state.mkdir(mode=0o700)
    with small_disk(state):
        settings, it = alone(launch, work_dir)
        before = it.run("before", "exit 3")
        assert it.router.post(before + "/wait").json()["exit_code"] == 3
        filler = state / "filler"
        fill(filler)
        kill_whole(it.router)
        again = it.router = launch(start_router, **settings)
        wait_until(lambda: "event=store_failed" in again.log.read_text())
        assert again.get(it.bytes_job + "/http/").text == "hello"
        while_full = it.run("while-full", "exit 4")
        assert again.post(while_full + "/wait").json()["exit_code"] == 4
        filler.unlink()
        wait_until(lambda: it.metric("store_backlog") == 0, what="everything is written")
        kill_whole(it.router)
        it.router = launch(start_router, **settings)
        known = {info["name"]: info["exit_code"] for info in it.router.get("/jobs").json()["jobs"]}
        assert (known["before"], known["while-full"]) == (3, 4)
        assert not list(state.glob("*.broken-*"))
        assert it.router.stop() == 0


def test_a_drained_router_says_so_finishes_what_it_has_and_ends(launch: Launch, work_dir: Path) -> None:
    settings = {**fixed(work_dir), "control__drain_delay": 1.0, "control__drain_timeout": 20}
    router = launch(start_router, **settings)
    it = Stand(router, launch(start_agent, router), work_dir / "marks")
    it.serve()
    address = ("127.0.0.1", settings["control__port"])
    slow: list[str] = []
    client = threading.Thread(target=lambda: slow.append(it.router.get(it.bytes_job + "/http/slow?ms=5000").text))
    client.start()
    wait_until(lambda: it.open_connections() >= 1)
    it.router.popen.terminate()
    wait_until(lambda: it.router.get("/readyz").status_code == 503, 5, "/readyz tells first")
    assert "Retry-After" in it.router.get("/readyz").headers
    assert it.router.get(it.bytes_job + "/http/").text == "hello", "requests are still taken"

    def refused() -> bool:
        try:
            socket.create_connection(address, timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, 5, "nothing new is accepted, nor left to wait for nobody")
    assert slow == [], "what is in progress goes on meanwhile"
    assert it.router.popen.poll() is None
    client.join(20)
    assert slow == ["slow"], "what was in progress is finished"
    assert it.router.popen.wait(10) == 0


def test_a_table_that_is_deleted_under_the_running_router_is_written_again(launch: Launch, work_dir: Path) -> None:
    """Also what no agent can tell any more: jobs that were removed, keys and events."""
    settings, it = alone(launch, work_dir)
    create = {"name": "removed", "agent": {"type": "uid", "uid": it.agent.uid}}
    key = {"Idempotency-Key": "once"}
    removed = request(it.router.url, "POST", "/jobs/create", create, key)["path"]
    it.router.start(removed, ["sh", "-c", "exit 3"], port_expected_count=0)
    assert it.router.post(removed + "/wait").json()["exit_code"] == 3
    assert it.router.post(removed + "/remove").status_code == 200
    for file in (work_dir / "state").glob("router.sqlite*"):
        file.unlink()
    wait_until(lambda: "event=rewritten" in it.router.log.read_text(), what="the table is written again")
    wait_until(lambda: events_in(work_dir / "state" / "router.sqlite"), what="events, the last of it, are written")
    kill_whole(it.router)
    it.router = launch(start_router, **settings)
    closed = it.router.get("/jobs?state=CLOSED").json()["jobs"]
    assert [(info["path"], info["exit_code"]) for info in closed] == [(removed, 3)]
    assert request(it.router.url, "POST", "/jobs/create", create, key)["path"] == removed
    assert it.router.get(it.bytes_job + "/http/").text == "hello"


def events_in(database: Path) -> int:
    """How many events are written down."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return int(opened.execute("SELECT count(*) FROM events").fetchone()[0])
