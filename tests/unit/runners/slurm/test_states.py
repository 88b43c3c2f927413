"""Slurm's states in the agent's terms, and exits made of them."""

from __future__ import annotations

from typing import Any

import pytest

from prouter.runners.slurm.exits import made_by_node, made_by_slurm, needs_explanation
from prouter.runners.slurm.job import NEXT, Job, JobState
from prouter.runners.slurm.states import Phase, end_reason, phase

JOB = "f" * 32


def told(**fields: Any) -> dict[str, Any]:
    usual = {"exit_code": None, "signal": None, "reason": None, "asked_to_end": False, "node": "n1", "at": 5.0}
    return {**usual, "cpu_seconds": 1.0, "max_rss": 2, **fields}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING", Phase.QUEUED),
        ("RUNNING", Phase.RUNNING),
        ("COMPLETING", Phase.ENDING),
        ("CANCELLED by 0", Phase.ENDED),
        ("CANCELLED+", Phase.ENDED),
        ("INVENTED_LATER", Phase.RUNNING),
    ],
)
def test_phases(state: str, expected: Phase) -> None:
    assert phase(state) is expected


@pytest.mark.parametrize(
    ("state", "reason", "log", "expected"),
    [
        ("TIMEOUT", "TimeLimit", "", "walltime"),
        ("OUT_OF_MEMORY", None, "", "memory"),
        ("FAILED", "JobLaunchFailure", "error: StepId=8.batch exceeded memory limit (5 > 4), being killed", "memory"),
        ("FAILED", "JobLaunchFailure", "", None),
        ("FAILED", "NodeDown", "", "node_failed"),
        ("NODE_FAIL", "NodeDown", "", "node_failed"),
        ("PREEMPTED", None, "", "preempted"),
        ("CANCELLED by 1000", None, "", "cancelled"),
        ("COMPLETED", None, "", None),
    ],
)
def test_reasons(state: str, reason: str | None, log: str, expected: str | None) -> None:
    assert end_reason(state, reason, log) == expected


def test_an_exit_code_needs_no_explanation_unless_slurm_asked_for_the_end() -> None:
    assert not needs_explanation(told(exit_code=0), killed=False, signalled=False)
    assert needs_explanation(told(exit_code=0, asked_to_end=True), killed=False, signalled=False)
    assert needs_explanation(told(exit_code=143), killed=False, signalled=False)
    assert not needs_explanation(told(exit_code=143), killed=False, signalled=True)
    assert needs_explanation(told(signal="SIGKILL"), killed=False, signalled=False)
    assert not needs_explanation(told(signal="SIGKILL"), killed=True, signalled=False)
    assert not needs_explanation(told(signal="SIGTERM"), killed=False, signalled=True)
    assert not needs_explanation(told(signal="SIGSEGV"), killed=False, signalled=False)
    assert not needs_explanation(told(signal="SIGKILL", reason="memory"), killed=False, signalled=False)


def test_exact_status_and_slurms_reason_together() -> None:
    end = made_by_node(JOB, told(signal="SIGTERM"), ("TIMEOUT", "TimeLimit"), "")
    assert (end.signal, end.reason, end.node, end.at) == ("SIGTERM", "walltime", "n1", 5.0)
    assert "time" in end.text


def test_without_a_word_of_the_node_slurm_has_to_do() -> None:
    lost = made_by_slurm(JOB, None, ("FAILED", "JobLaunchFailure"), "", ran=True)
    assert (lost.exit_code, lost.signal, lost.reason) == (None, None, "agent_lost")
    failed = made_by_slurm(JOB, None, ("FAILED", "NonZeroExitCode"), "sh: python3: not found", ran=False)
    assert failed.reason == "start_failed"
    assert "python3: not found" in failed.text


def test_a_job_only_goes_where_the_table_says(tmp_path: Any) -> None:
    for state, following in NEXT.items():
        for target in JobState:
            job = Job(JOB, tmp_path, {}, None)
            job.state = state
            if target in following:
                job.change(target)
            else:
                with pytest.raises(RuntimeError):
                    job.change(target)
