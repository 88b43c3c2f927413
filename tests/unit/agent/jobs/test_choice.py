"""A runner that cannot be opened is told in one line, not as a traceback of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from prouter.agent.jobs.choice import opened
from prouter.errors import AgentUnavailable, Conflict
from prouter.runners import Kept, Reports, Setup
from prouter.testing.recorded_reports import RecordedReports
from tests.runners.guarded.runner import GuardedRunner


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (KeyError("cluster.conf"), AgentUnavailable, "Answering cannot be opened: KeyError: 'cluster.conf'"),
        (OSError("two\nlines"), AgentUnavailable, "Answering cannot be opened: OSError: two lines"),
        (None, AgentUnavailable, "Answering.open returned None, which is no list of Kept"),
        (Conflict("in use"), Conflict, "in use"),
    ],
)
def test_a_runner_that_cannot_be_opened_is_explained(
    tmp_path: Path, answer: object, error: type[Exception], said: str
) -> None:
    class Answering(GuardedRunner):
        def open(self, reports: Reports) -> list[Kept]:
            if isinstance(answer, Exception):
                raise answer
            return cast(list[Kept], answer)

    with pytest.raises(error, match=said):
        opened(Answering(Setup(tmp_path, tmp_path)), RecordedReports())
