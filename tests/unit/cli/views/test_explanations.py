"""What `prouter explain` says about jobs that have ended."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.cli.views.explanations import explain
from prouter.client import JobInfo
from prouter.jobs import Reason


class EndedJob:
    """A job whose info is known."""

    def __init__(self, reason: str) -> None:
        self._info = JobInfo(uid="a" * 32, name="job", state="FINISHED", reason=reason, raw={})

    def info(self) -> JobInfo:
        return self._info


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_every_reason_is_told_in_words(reason: str) -> None:
    router: Any = None
    job: Any = EndedJob(reason)
    (finding,) = explain(router, job)
    words = finding.text.rpartition(": ")[2]
    assert words not in ("", reason)
    assert " " in words
