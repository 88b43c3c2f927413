"""Jobs in tables and as fields, without characters that control the terminal."""

from __future__ import annotations

import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.cli.views.jobs import JOB_COLUMNS, emit_jobs, fields
from prouter.client import JobInfo


@given(st.text())
def test_names_of_others_control_no_terminal(name: str) -> None:
    info = JobInfo(uid="a" * 32, name=name, state="RUNNING", raw={"uid": "a" * 32, "name": name})
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", lambda text="", **_: printed.append(text))
        emit_jobs([info], kind="table")
        emit_jobs([info], kind="json")
    assert len(printed) == 3
    assert all(line.isprintable() for line in printed[:2])
    assert json.loads(printed[2])[0]["name"] == name
    assert fields(info)["id"] == info.uid


@pytest.mark.parametrize(
    ("info", "state"),
    [
        (JobInfo(uid="a", state="NEW"), "NEW"),
        (JobInfo(uid="a", state="NEW", phase="queued", position=3), "NEW (queued, no. 3)"),
        (
            JobInfo(uid="a", state="NEW", phase="queued", queue={"reason": "Priority", "expected_start": None}),
            "NEW (queued)",
        ),
        (JobInfo(uid="a", state="PENDING", phase="starting"), "PENDING"),
        (JobInfo(uid="a", state="RUNNING", phase="ready"), "RUNNING"),
        (JobInfo(uid="a", state="RUNNING", phase="unreachable"), "RUNNING (unreachable)"),
        (JobInfo(uid="a", state="FINISHED", phase="exited"), "FINISHED"),
    ],
)
def test_tables_tell_what_a_state_does_not(info: JobInfo, state: str) -> None:
    column = next(column for column in JOB_COLUMNS if column.title == "STATE")
    assert column.cell(info) == state


def test_the_fields_of_a_queued_job_tell_where_and_why_it_waits() -> None:
    queue = {"reason": "Priority", "expected_start": "2030-01-31T12:00:00Z"}
    waiting = JobInfo(uid="a", state="NEW", phase="queued", position=2, queue=queue)
    assert fields(waiting)["queued"] == "at position 2, Priority, expected to start at 2030-01-31T12:00:00Z"
    assert "queued" not in fields(JobInfo(uid="a", state="RUNNING", phase="ready"))
