"""What infos of jobs tell to whom: the output of a job that failed to start is part of its logs.

The error of such a job has one line about what went wrong, then the end of the job's stderr. Only those who may read
the job's logs get these further lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prouter.access.roles import Principal, Role, is_allowed
from prouter.web.route_roles import NEEDS

__all__ = ["disclosed", "disclosed_list", "has_output", "reads_logs", "without_output"]

_LINE_BREAK = rb"\n"
"""As JSON writes it."""


def reads_logs(principal: Principal, owner: str | None) -> bool:
    """Whether somebody may read the logs of this owner's jobs."""
    return is_allowed(principal, NEEDS["log"], owner)


def has_output(job: Mapping[str, Any]) -> bool:
    """Whether the error in a job's info or record holds output of the job."""
    return "\n" in (job.get("error") or "")


def without_output(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's info or record with the first line of its error only."""
    return {**job, "error": job["error"].partition("\n")[0]}


def disclosed(job: dict[str, Any], principal: Principal) -> dict[str, Any]:
    """Return a job's info as `principal` may see it."""
    return without_output(job) if has_output(job) and not reads_logs(principal, job.get("owner")) else job


def disclosed_list(jobs: bytes, principal: Principal) -> bytes:
    """Return the broker's JSON of jobs, without brackets, as `principal` may see it."""
    if principal.role >= Role.OPERATOR or _LINE_BREAK not in jobs:
        return jobs
    shown = [disclosed(job, principal) for job in json.loads(b"[%b]" % jobs)]
    return json.dumps(shown, separators=(",", ":")).encode("ascii")[1:-1]
