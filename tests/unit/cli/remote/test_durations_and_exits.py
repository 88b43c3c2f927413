"""Durations and sizes as commands print them, and exit codes."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.cli.remote.durations import DURATION, size, span
from prouter.cli.remote.exits import of_job
from prouter.cli.remote.failures import describe, exit_of
from prouter.client import ConnectionFailed, Forbidden, NotFound, Outcome, Overloaded, RouterError, TimedOut


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
