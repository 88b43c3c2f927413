"""Limits of what the jobs of one owner take. Pure functions."""

from __future__ import annotations

from prouter.errors import Limit, LimitReached

__all__ = ["check_bytes", "check_jobs"]

_RETRY_AFTER = 5.0
"""Seconds: nobody knows when a job ends."""


def check_jobs(owner: str | None, jobs: int, most: int) -> None:
    """Check whether an owner may have one more job.

    Args:
        jobs: how many jobs of the owner have not ended.
        most: ``limits.jobs_per_owner``; 0 for any number.

    Raises:
        LimitReached: the owner has as many as is allowed.
    """
    if most and jobs >= most:
        raise LimitReached(
            f"{_who(owner)} {jobs} jobs that have not ended and may have {most} (limits.jobs_per_owner): end one first",
            retry_after=_RETRY_AFTER,
            limit=Limit("limits.jobs_per_owner", most),
        )


def check_bytes(owner: str | None, used: int, most: int, more: int = 0, *, job: str | None = None) -> None:
    """Check whether an owner may store more bytes.

    Args:
        used: bytes in the sandboxes of the owner's jobs.
        most: ``limits.sandbox_bytes_per_owner``; 0 for any number.
        more: bytes to be stored; 0 if their number is not known.
        job: uid of the job whose sandbox they go to.

    Raises:
        LimitReached: the owner has as many as is allowed, or would have more.
    """
    if most and (used >= most or used + more > most):
        plus = f", {more} more would come," if more else ""
        raise LimitReached(
            f"{_who(owner)} {used} bytes in sandboxes{plus} and may have {most} (limits.sandbox_bytes_per_owner): "
            "delete files or remove jobs first",
            job=job,
            retry_after=_RETRY_AFTER,
            limit=Limit("limits.sandbox_bytes_per_owner", most),
        )


def _who(owner: str | None) -> str:
    return f"'{owner}' has" if owner is not None else "jobs without an owner together have"
