"""Counters of all workers in one place, which never go down."""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from prouter.web.metrics import counters
from prouter.web.metrics.counters import API, BOUNDS, GAUGES, JOB, Board
from prouter.web.metrics.exposition import BROKER, FIGURES, families
from tests.support.programs import needed, program


def board() -> Board:
    return Board(mmap.mmap(-1, Board.size))


def work(shared: Board, answers: int) -> int:
    """What a worker does in its own process; its pid."""
    pid = os.fork()
    if not pid:
        for _ in range(answers):
            shared.count_response(JOB, b"GET", 200, 0.003)
        shared.publish({"streams": 5}, cpu_seconds=1.0)
        signal.pause()
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def answered(shared: Board) -> float:
    return shared.totals().requests[JOB, "GET", "2xx"]


def test_sums_stay_when_workers_are_killed_and_replaced() -> None:
    shared = board()
    pids = {}
    for worker in (1, 2, 3):
        shared.enter(worker)
        pids[worker] = work(shared, 1000)
    try:
        while answered(shared) < 3000 or shared.totals().gauges["streams"] < 15:
            pass
        end(pids.pop(2))
        shared.leave(2)
        assert (answered(shared), shared.totals().gauges["streams"], shared.totals().cpu_seconds) == (3000, 10, 3.0)
        shared.enter(4)
        pids[4] = work(shared, 7)
        while answered(shared) < 3007 or shared.totals().cpu_seconds < 4:
            pass
        assert answered(shared) == 3007
    finally:
        for pid in pids.values():
            end(pid)


def test_workers_beyond_the_slots_count_for_nobody_and_harm_nobody() -> None:
    shared = board()
    for worker in range(200):
        shared.enter(worker)
        shared.count_response(API, "GET", 200, 0.1)
    assert shared.totals().requests[API, "GET", "2xx"] == 128
    for worker in range(200):
        shared.leave(worker)
    shared.enter(201)
    shared.count_response(API, "GET", 200, 0.1)
    assert shared.totals().requests[API, "GET", "2xx"] == 129


@given(st.lists(st.tuples(st.sampled_from([API, JOB]), st.floats(0, 100)), max_size=50))
def test_every_answer_is_in_the_bucket_of_its_time(times: list[tuple[int, float]]) -> None:
    shared = board()
    for to, seconds in times:
        shared.count_response(to, "POST", 503, seconds)
    found = shared.totals()
    for to in (API, JOB):
        own = [seconds for other, seconds in times if other == to]
        assert found.requests[to, "POST", "5xx"] == len(own) == sum(found.buckets[to])
        for place, bound in enumerate(BOUNDS):
            assert sum(found.buckets[to][: place + 1]) == sum(seconds <= bound for seconds in own)
        assert found.seconds[to] == pytest.approx(sum(own))


@pytest.mark.parametrize(
    ("method", "shown"), [(b"PATCH", "PATCH"), ("PATCH", "PATCH"), (b"BREW", "other"), (b"", "other")]
)
def test_methods_that_nobody_knows_are_one(method: str | bytes, shown: str) -> None:
    shared = board()
    shared.count_response(API, method, 101, 0)
    assert shared.totals().requests[API, shown, "1xx"] == 1


def test_a_new_parent_counts_on_from_what_the_last_one_left(tmp_path: Path) -> None:
    place = tmp_path / "figures"
    first = counters._open(place)
    first.enter(1)
    first.count_response(JOB, b"GET", 200, 0.2)
    first.publish({"streams": 3}, cpu_seconds=2.5)
    second = counters._open(place)
    totals = second.totals()
    assert (answered(second), totals.seconds[JOB], totals.cpu_seconds) == (1, 0.2, 2.5)
    assert totals.gauges == dict.fromkeys(GAUGES, 0), "nobody has anything now"
    first.count_response(JOB, b"GET", 200, 0.2)
    second.enter(1)
    second.count_response(JOB, b"GET", 200, 0.2)
    second.publish({}, cpu_seconds=1.0)
    assert (answered(second), second.totals().cpu_seconds) == (2, 3.5)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


@pytest.mark.parametrize("left", [b"", b"x" * Board.size, bytes(10)])
def test_a_file_that_is_none_of_ours_is_replaced(tmp_path: Path, left: bytes) -> None:
    place = tmp_path / "figures"
    place.write_bytes(left)
    assert answered(counters._open(place)) == 0
    assert place.stat().st_size == Board.size


def test_without_a_place_for_the_file_workers_share_memory_all_the_same(tmp_path: Path) -> None:
    shared = counters._open(tmp_path / "missing" / "figures")
    shared.count_response(JOB, b"GET", 200, 0.2)
    assert answered(shared) == 1


class Registry:
    def __init__(self, found: Iterable[Metric]) -> None:
        self.found = list(found)

    def collect(self) -> Iterable[Metric]:
        return self.found


@needed("promtool")
def test_promtool_has_nothing_to_say() -> None:
    shared = board()
    shared.count_response(JOB, b"GET", 200, 0.2)
    text = generate_latest(Registry(families(shared.totals(), dict.fromkeys(BROKER, 1.0))))
    tool = program("promtool")
    assert tool is not None
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b""), done.stderr.decode()


def test_every_metric_that_is_shown_is_described_and_all_described_are_shown() -> None:
    shown = {family.name for family in families(board().totals(), dict.fromkeys(BROKER, 1.0))}
    described = {figure.name.removesuffix("_total").removesuffix("_info") for figure in FIGURES}
    assert shown == described


def test_every_figure_of_the_broker_is_described() -> None:
    source = "".join(path.read_text() for path in Path(counters.__file__).parents[2].glob("broker/**/*.py"))
    counted = {f"total.{name}" for name in re.findall(r'counts\["(\w+)"\]', source)}
    assert counted
    assert counted <= set(BROKER), "describe them in prouter/web/metrics/exposition.py"
