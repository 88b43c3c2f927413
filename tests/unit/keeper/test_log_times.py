"""The times of a log: entries that are written, bounded, and found again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from prouter.keeper import log_times
from prouter.keeper.log_gaps import LOGS_DIRECTORY, TIMES
from prouter.keeper.log_times import LogTimes, entries, position_since

ENTRY = 16


class Clock:
    """The time as the log writer sees it."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log_times, "time", clock)
    return clock


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    (tmp_path / LOGS_DIRECTORY).mkdir()
    fd = os.open(tmp_path / LOGS_DIRECTORY / "j.stdout", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def stored(log: int) -> list[tuple[float, int]]:
    fd = os.open(os.readlink(f"/proc/self/fd/{log}") + TIMES, os.O_RDONLY)
    try:
        return entries(fd)
    finally:
        os.close(fd)


def test_entries_are_a_second_apart_and_a_short_job_has_no_file(log: int, clock: Clock, tmp_path: Path) -> None:
    times = LogTimes(log)
    for clock.now, position in ((1000.0, 0), (1000.5, 10)):
        times.note(position)
    assert os.listdir(tmp_path / LOGS_DIRECTORY) == ["j.stdout"]
    for clock.now, position in ((1001.0, 20), (1001.9, 30), (900.0, 40)):
        times.note(position)
    assert stored(log) == [(1000.0, 0), (1001.0, 20), (900.0, 40)], "a clock that was set back begins anew"
    path = tmp_path / LOGS_DIRECTORY / f"j.stdout{TIMES}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_bounded_and_a_cut_entry_is_overwritten(log: int, clock: Clock, tmp_path: Path) -> None:
    times = LogTimes(log, most=4 * ENTRY)
    for number in range(50):
        clock.now = 1000.0 + number
        times.note(number)
        if number == 20:
            os.truncate(tmp_path / LOGS_DIRECTORY / f"j.stdout{TIMES}", 2 * ENTRY + 3)
    found = stored(log)
    assert 2 <= len(found) <= 4
    assert found[-1] == (1049.0, 49)
    assert [position for _, position in found] == list(range(50 - len(found), 50))


def test_only_logs_beside_sandboxes_have_times(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / LOGS_DIRECTORY).mkdir()
    removed = tmp_path / LOGS_DIRECTORY / "removed"
    for path in (tmp_path / "agent.log", removed):
        with path.open("wb") as file:
            removed.unlink(missing_ok=True)
            times = LogTimes(file.fileno())
            for clock.now in (2000.0, 2002.0):
                times.note(0)
    assert os.listdir(tmp_path / LOGS_DIRECTORY) == []
    assert sorted(os.listdir(tmp_path)) == [LOGS_DIRECTORY, "agent.log"]


@pytest.mark.parametrize(
    ("moment", "position"),
    [(0.0, 0), (99.0, 0), (100.5, 0), (101.0, 50), (150.0, 50), (200.9, 50), (201.0, None), (1e12, None)],
)
def test_no_byte_of_the_moment_or_later_is_left_out(moment: float, position: int | None) -> None:
    assert position_since([(100.0, 0), (200.0, 50)], moment, 0) == position


def test_positions_count_from_where_the_log_was_emptied() -> None:
    found = [(100.0, 0), (200.0, 900), (300.0, 5), (400.0, 60)]
    assert [position_since(found, moment, 1000) for moment in (150.0, 250.0, 350.0, 500.0)] == [0, 1005, 1060, None]
    assert position_since(found[:2], 150.0, 1000) == 0, "all entries are from before"
