"""What a client is told whose connection to a port of a job did not come about."""

from __future__ import annotations

import pytest

from prouter.transport.stream_io import StreamReset
from prouter.web.admin.resources.ports import _refusal


@pytest.mark.parametrize(
    ("reset", "status", "code"),
    [
        ("no_such_port", 404, "no_such_port"),
        ("no_job", 404, "not_found"),
        ("not_running", 424, "job_ended"),
        ("job_ended", 424, "job_ended"),
        ("connect_timeout", 504, "job_timeout"),
        ("unknown_kind", 501, "agent_too_old"),
        ("path_lost", 503, "agent_unavailable"),
        ("job_reset", 502, "job_unreachable"),
        ("anything", 502, "job_unreachable"),
    ],
)
def test_each_reset_has_its_error(reset: str, status: int, code: str) -> None:
    error = _refusal(StreamReset("why", code=reset), "j1")
    assert (error.status, error.code, error.job) == (status, code, "j1")
    assert "why" in error.detail or code == "agent_too_old"
