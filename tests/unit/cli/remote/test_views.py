"""What commands print: durations, sizes, exit codes, tables without characters that control the terminal."""

from __future__ import annotations

import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.cli.remote.durations import DURATION, size, span
from prouter.cli.remote.exits import of_job
from prouter.cli.remote.failures import describe, exit_of
from prouter.cli.remote.job_views import JOB_COLUMNS, emit_jobs, fields
from prouter.cli.remote.transfers import Place, place_of
from prouter.client import ConnectionFailed, Forbidden, JobInfo, NotFound, Outcome, Overloaded, RouterError, TimedOut


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("1.5", 1.5), ("30m", 1800.0), ("24h", 86400.0), ("7d", 604800.0), ("0", 0.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1e9", "inf", "\u0661s", "1 s", "9" * 20])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@given(st.integers(0, 1 << 62))
def test_a_size_is_short(count: int) -> None:
    assert len(size(count)) <= 5


@given(st.floats(-10, 1e9))
def test_a_span_is_one_number_with_a_unit(seconds: float) -> None:
    assert span(seconds)[:-1].isdigit()


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(state="FINISHED", exit_code=7, reason="exited"), 7),
        (Outcome(state="FINISHED", signal="SIGKILL", reason="memory"), 137),
        (Outcome(state="FINISHED", signal="SIGTERM", reason="timeout"), 124),
        (Outcome(state="FINISHED", signal="SIGRTMIN+3", reason="signaled"), 128 + 37),
        (Outcome(state="FINISHED", signal="SIGODD", reason="signaled"), 125),
        (Outcome(state="FINISHED", reason="agent_lost"), 125),
    ],
)
def test_the_exit_code_tells_how_the_job_ended(outcome: Outcome, code: int) -> None:
    assert of_job(outcome) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFound("x"), 3), (Forbidden("x"), 4), (ConnectionFailed("x"), 5), (Overloaded("x"), 6), (TimedOut("x"), 124),
     (RouterError("x"), 1), (OSError("x"), 1)],
)  # fmt: skip
def test_the_exit_code_tells_what_is_wrong(error: Exception, code: int) -> None:
    assert exit_of(error) == code
    assert describe(error)


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
    ("text", "place"),
    [
        ("web:a/b", Place("web", "a/b")),
        ("web:", Place("web", "")),
        ("./web:a", Place(None, "./web:a")),
        ("dir/x:y", Place(None, "dir/x:y")),
        ("-", Place(None, "-")),
        (":x", Place(None, ":x")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert place_of(text) == place


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
