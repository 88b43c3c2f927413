"""The agent is killed, restarted and stopped: jobs end with it or are found again, and everybody is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.load import Load
from tests.faults.stand import MIB, Amount, Stand, sandboxes
from tests.faults.test_router import fill, small_disk
from tests.support.processes import Router, start_agent, wait_until
from tests.support.raw_http import Raw

Launch = Callable[..., Any]


def connection_of(router: Router, agent: str) -> dict[str, Any]:
    """The agent's connection as the API shows it, empty when there is none."""
    found = [c for c in router.get("/connections").json()["connections"] if c["peer"]["auth"]["uid"] == agent]
    return found[0] if found else {}


def test_a_killed_agent_leaves_nothing_and_its_successor_takes_over_at_once(
    stand: Callable[..., Stand], load: Load, launch: Launch
) -> None:
    it = stand()
    amount = Amount()
    it.transfers(load, amount)
    load.started()
    with_tree = it.run("family", "sleep 3600 & setsid sleep 3600 & (setsid env -i sleep 3601 &) ; wait")
    waiting = Load()
    with waiting:
        it.wait_everywhere(waiting, 10)
        before = connection_of(it.router, it.agent.uid)["uid"]
        processes = [pid for path in [*it.jobs(), with_tree] for pid in it.pids_of_job(path)]
        assert len(processes) >= 6
        it.agent.kill()
        killed = time.monotonic()
        wait_until(lambda: not any(map(alive, processes)), 5, "the jobs' processes end")
        wait_until(lambda: not sandboxes(it.agent), 5, "the sandboxes are deleted")
        fresh = launch(start_agent, it.router, identity__uid=it.agent.uid)
        taken = time.monotonic() - killed
        assert taken < 10, f"a new agent was linked after {taken:.1f} s"
        connection = connection_of(it.router, fresh.uid)
        assert connection["up"]
        assert connection["uid"] != before
        wait_until(lambda: len(it.waited) == 10, 5, "waits are answered")
        assert {(info["state"], info["reason"]) for info in it.waited} == {("FINISHED", "agent_lost")}
    wait_until(lambda: len(load.errors) == len(load.gauges), 5, "transfers break")
    assert not [error for _, error in load.errors if isinstance(error, TimeoutError)]
    path = it.router.create(fresh.uid)
    it.router.start(path, ["true"], port_expected_count=0)
    assert it.router.post(path + "/wait").json()["exit_code"] == 0


@pytest.mark.parametrize("transport", ["tcp", "ipc", "curve"])
def test_waits_are_answered_soon_when_the_agent_is_killed_and_nobody_comes(
    stand: Callable[..., Stand], transport: str
) -> None:
    it = stand(transport=transport)
    with Load() as waiting:
        it.wait_everywhere(waiting, 5)
        it.agent.kill()
        wait_until(lambda: len(it.waited) == 5, 5, "waits are answered")
    assert {info["reason"] for info in it.waited} == {"agent_lost"}
    answer = it.router.get(it.bytes_job + "/http/", headers={"Accept": "application/json"})
    assert answer.status_code == 424, answer.text
    assert "agent" in answer.json()["detail"]


def test_a_restarted_agent_finds_its_jobs_again(stand: Callable[..., Stand], launch: Launch) -> None:
    it = stand(agent={"jobs__keep_for": 30})
    ends = it.run("ends", "echo before; sleep 1; echo after; exit 7")
    fresh_path = it.router.create(it.agent.uid, "not started yet")
    processes = [it.router.get(path + "/info").json()["pid"] for path in it.jobs()]
    with (
        Load() as load,
        Raw(it.router.url) as asking,
        it.router.get(it.counter + "/logs/stdout?follow=1&offset=0", stream=True) as log,
    ):
        told = log.iter_lines()
        last = int(next(told))
        it.wait_everywhere(load, 5)
        asking.request("GET", f"{it.fast_job}/http/slow?ms=60000")
        wait_until(lambda: it.router.get(it.fast_job + "/http/").text, 10)
        it.agent.kill()
        wait_until(lambda: not it.pids_of_job(ends), 10, "a job ends while nobody looks")
        again = it.restart_agent(launch, jobs__keep_for=30)
        assert again.uid == it.agent.uid
        wait_until(lambda: connection_of(it.router, again.uid).get("up"), 10)
        assert all(map(alive, processes))
        assert it.router.get(it.bytes_job + "/http/").text == "hello"
        info = it.router.post(ends + "/wait").json()
        assert (info["state"], info["exit_code"], info["reason"]) == ("FINISHED", 7, "exited")
        assert it.router.get(ends + "/logs/stdout").text == "before\nafter\n"
        assert it.router.get(it.counter + "/logs/stdout?tail=1").status_code == 200
        answer = asking.read_until(b"the agent was restarted")
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        for line in islice(told, 50):
            assert int(line) == last + 1, "followers of logs miss nothing"
            last += 1
        it.router.start(fresh_path, ["true"], port_expected_count=0)
        assert it.router.post(fresh_path + "/wait").json()["exit_code"] == 0
        it.end_waits(5)


def test_jobs_that_nobody_finds_again_in_time_are_ended(stand: Callable[..., Stand]) -> None:
    it = stand(agent={"jobs__keep_for": 1})
    processes = [pid for path in it.jobs() for pid in it.pids_of_job(path)]
    it.agent.kill()
    killed = time.monotonic()
    wait_until(lambda: not any(map(alive, processes)), 10, "the jobs' processes end")
    assert time.monotonic() - killed >= 0.9
    wait_until(lambda: not sandboxes(it.agent), 5, "the sandboxes are deleted")


def test_an_agent_that_stood_still_is_back_as_itself(stand: Callable[..., Stand], load: Load) -> None:
    it = stand(router={"server__heartbeat": 0.5})
    before = connection_of(it.router, it.agent.uid)
    it.transfers(load, Amount(size=4 * MIB, rate=4 * MIB))
    it.echoes_and_logs(load, 5)
    with Load() as waiting:
        it.wait_everywhere(waiting, 5)
        load.started()
        os.kill(it.agent.pid, signal.SIGSTOP)
        wait_until(lambda: not connection_of(it.router, it.agent.uid)["up"], 5, "it is seen as away")
        os.kill(it.agent.pid, signal.SIGCONT)
        wait_until(lambda: connection_of(it.router, it.agent.uid)["up"], 5, "it is back")
        after = connection_of(it.router, it.agent.uid)
        assert (after["uid"], after["since"]) == (before["uid"], before["since"])
        load.started()
        load.finish()
        it.end_waits(5)


def test_an_agent_away_for_longer_than_streams_wait_loses_them_but_not_its_jobs(
    stand: Callable[..., Stand], load: Load
) -> None:
    timeouts = {"fabric__resume_timeout": 2}
    it = stand(router={"server__heartbeat": 0.5, "control__hold": 1, **timeouts}, agent=timeouts)
    it.transfers(load, Amount(size=16 * MIB, rate=4 * MIB))
    load.started()
    os.kill(it.agent.pid, signal.SIGSTOP)
    wait_until(lambda: len(load.errors) == len(load.gauges), 10, "streams are given up")
    for path in (it.fast_job + "/http/", it.bytes_job + "/file/x"):
        answer = it.router.get(path)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), answer.text
    os.kill(it.agent.pid, signal.SIGCONT)
    wait_until(lambda: connection_of(it.router, it.agent.uid)["up"], 5, "it is back")
    assert it.router.get(it.bytes_job + "/http/").text == "hello"
    wait_until(lambda: it.open_connections() <= 2, 5, "the job's side of the lost streams is closed")


def test_a_drained_agent_finishes_its_jobs_and_takes_no_new_ones(stand: Callable[..., Stand]) -> None:
    it = stand()
    connection = connection_of(it.router, it.agent.uid)["uid"]
    assert it.router.post(f"/connections/{connection}/drain").status_code == 200
    for selector in ({"type": "any"}, {"type": "uid", "uid": it.agent.uid}):
        answer = it.router.post("/jobs/create", {"name": "late", "agent": selector})
        assert answer.status_code in (429, 503), answer.text
        assert "Retry-After" in answer.headers
    assert requests.get(it.router.url + it.bytes_job + "/http/", timeout=10).text == "hello"
    assert it.router.post(f"/connections/{connection}/resume").status_code == 200
    assert it.router.create(it.agent.uid)


def test_an_agent_whose_state_directory_is_full_says_so_and_goes_on(
    stand: Callable[..., Stand], work_dir: Path
) -> None:
    place = work_dir / "state"
    place.mkdir(mode=0o700)
    with small_disk(place):
        it = stand(agent={"state__dir": str(place)})
        waiting = it.router.create(it.agent.uid, "created before")
        kept = sorted((place / "keeper" / "jobs").iterdir())
        fill(place / "filler")
        answer = it.router.post("/jobs/create", {"name": "more", "agent": {"type": "uid", "uid": it.agent.uid}})
        assert (answer.status_code, answer.json()["code"]) == (507, "no_space"), answer.text
        assert sorted((place / "keeper" / "jobs").iterdir()) == kept
        assert it.router.get(it.bytes_job + "/http/").text == "hello"
        it.router.start(waiting, ["true"], port_expected_count=0)
        assert it.router.post(waiting + "/wait").json()["exit_code"] == 0
        assert it.router.post(waiting + "/remove").status_code == 200
        (place / "filler").unlink()
        assert it.router.create(it.agent.uid)
        it.agent.stop()


def alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
