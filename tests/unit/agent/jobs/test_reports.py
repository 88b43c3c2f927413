"""What a runner reports while the agent takes its jobs over is not lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prouter.jobs import Reason, State
from prouter.runners import Exit, Kept, Reports
from tests.support.job_manager import Managers


def test_an_end_that_comes_before_the_agent_knows_the_job_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managers = Managers(tmp_path)
    try:
        first = managers.open(keep_for=30)
        uid = first.run("sleep", "1000")
        first.manager.close(end_jobs=False)
        opened = type(first.runner).open

        def open_and_tell(runner: object, reports: Reports) -> list[Kept]:
            kept = opened(runner, reports)  # type: ignore[arg-type]
            reports.exited(Exit(uid, 3, None, None, 0.0, 0, time.time()))
            return kept

        monkeypatch.setattr(type(first.runner), "open", open_and_tell)
        record = managers.open(keep_for=30).ended(uid)
        assert (record.state, record.exit_code, record.reason) == (State.FINISHED, 3, Reason.EXITED)
    finally:
        managers.close()
