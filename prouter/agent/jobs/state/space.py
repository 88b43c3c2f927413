"""Whether the agent has a free slot and resources for one more job, and what it tells routers of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prouter.agent.jobs.state.table import JobTable
from prouter.errors import Limit, LimitReached
from prouter.jobs import JobRecord
from prouter.resources import Amounts, add, lacking

__all__ = ["capacity", "check_space", "load_of", "used_by"]

_RETRY_AFTER = 5.0
"""Seconds: nobody knows when a job ends."""


def capacity(slots: int | None, users: int | None, resources: Amounts) -> dict[str, Any]:
    """What routers are told: how many jobs may live at once, whether that is the number of users, and the resources.

    Args:
        slots: the setting ``jobs.max``, None for any number.
        users: how many users there are for jobs, None if they are not limited.
    """
    told = {"resources": dict(resources)}
    if users is None or (slots is not None and slots < users):
        return {"max": slots, **told}
    return {"max": users, "users": True, **told}


def load_of(records: Iterable[JobRecord], load: float, *, draining: bool) -> dict[str, Any]:
    """What routers are told again and again: the load, how many jobs have not ended, and the resources these take."""
    running, used = 0, dict[str, float]()
    for record in records:
        if not record.ended:
            running += 1
            add(used, record.resources)
    return {"load": load, "running": running, "draining": draining, "used": used}


def used_by(jobs: JobTable, coming: Iterable[Amounts]) -> dict[str, float]:
    """What somebody's jobs take of each resource, together with those that are being made."""
    used = jobs.taken
    for amounts in coming:
        add(used, amounts)
    return used


def check_space(
    uid: str, jobs: JobTable, coming: Sequence[Amounts], slots: int | None, resources: Amounts, wanted: Amounts
) -> None:
    """Refuse a job for which there is no slot, or too little of a resource. Warm jobs do not count.

    Args:
        coming: what each of the other jobs takes that are being made.

    Raises:
        LimitReached: that is so.
    """
    if slots is not None and jobs.slots + len(coming) >= slots:
        raise LimitReached(
            f"the agent has no free slot: it has {slots} jobs, which is its limit; try another agent",
            job=uid,
            retry_after=_RETRY_AFTER,
            limit=Limit("jobs.max", slots),
        )
    short = lacking(wanted, resources, used_by(jobs, coming)) if wanted else []
    if short:
        raise LimitReached(
            f"the agent has too little of {', '.join(short)} left for this job; wait, or try another agent",
            job=uid,
            retry_after=_RETRY_AFTER,
            limit=Limit(f"jobs.resources.{short[0]}", resources.get(short[0], 0)),
        )
