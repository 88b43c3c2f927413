"""Operations of the ways in to a job: passes and share links."""

from __future__ import annotations

from prouter.access.requests import ShareRequest
from prouter.web.admin import responses
from prouter.web.admin.operation import FORM, IDEMPOTENCY_KEY, TEXT_SCHEMA, Operation, Parameter

__all__ = ["about_ways_in"]

_JOB = "/jobs/{connection}/{job}"


def about_ways_in() -> list[Operation]:
    """Return these operations."""
    return [
        Operation(
            "get",
            "/enter",
            "enter",
            "Lead somebody who is signed in to a job, or ask first.",
            {200: ("text/html",), 303: None},
            (
                Parameter("job", TEXT_SCHEMA, "Uid of the job."),
                Parameter("next", TEXT_SCHEMA, "Path to go to, below the job's root."),
            ),
            errors=(401, 403, 404, 429, 503),
        ),
        Operation(
            "post",
            "/enter",
            "openJob",
            "Lead to a job: the form of the page that asked.",
            {303: None},
            (),
            (FORM,),
            errors=(400, 401, 403, 404, 429, 503),
        ),
        Operation(
            "post",
            f"{_JOB}/pass",
            "pass",
            "A URL that opens the job in a browser, within a minute.",
            {200: responses.Pass},
            errors=(403, 404, 503),
        ),
        Operation(
            "get", f"{_JOB}/share", "shares", "The job's share links.", {200: responses.Shares}, errors=(404, 503)
        ),
        Operation(
            "post",
            f"{_JOB}/share",
            "share",
            "A new share link, whose URL opens the job's HTTP to everybody who has it; the URL is shown this once.",
            {201: responses.NewShare},
            (IDEMPOTENCY_KEY,),
            ShareRequest,
            errors=(400, 403, 404, 409, 503),
        ),
        Operation(
            "delete",
            f"{_JOB}/share/{{share}}",
            "unshare",
            "End a share link; answers once no worker accepts it.",
            {204: None},
            errors=(404, 503),
        ),
    ]
