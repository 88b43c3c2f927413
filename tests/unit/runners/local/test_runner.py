"""The local runner's view of its keeper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.keeper.wire import PROTOCOL
from prouter.runners import Setup
from prouter.runners.local.keeper_client import KeeperClient
from prouter.runners.local.runner import LocalRunner
from prouter.testing.recorded_reports import RecordedReports

JOB = "a" * 32
EXIT = {
    "job": JOB, "exit_code": 8, "signal": None, "reason": None, "cpu_seconds": 0.1, "max_rss": 1, "at": 2.0,
}  # fmt: skip
RUNNING = {
    "job": JOB,
    "record": {"n": 1},
    "sandbox": None,
    "spawned": {"pid": 99, "start_time": 1, "started_at": 1.0},
    "exit": None,
}


class Keeper:
    """A client of a keeper whose job ends while the agent opens the runner."""

    lost = False

    def __init__(self, on_event: Any) -> None:
        self._on_event = on_event

    def hello(self, *, keep_for: float, timeout: float) -> dict[str, Any]:
        """Tell that the job runs, and at once that it has ended, as one packet may do."""
        self._on_event({"event": "exit", "exit": EXIT})
        return {"protocol": PROTOCOL, "pid": 1, "jobs": [RUNNING]}

    def close(self, *, wait: bool) -> None:
        """Disconnect."""


def test_an_end_that_is_told_with_the_keepers_first_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeeperClient, "connect", lambda _, on_event, on_lost: Keeper(on_event))
    runner, reports = LocalRunner(Setup(tmp_path / "state", tmp_path / "jobs", 30.0)), RecordedReports()
    kept = runner.open(reports)
    gevent.sleep(0)
    assert kept[0].exit is not None
    assert kept[0].exit.exit_code == 8
    assert reports.order == {}, "an end that `open` returns is not reported"
    runner.close(end_jobs=False)
