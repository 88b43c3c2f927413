"""Starts of warm jobs: what the pool asks of the other parts of the job manager."""

from __future__ import annotations

from collections.abc import Callable

from prouter.agent.jobs.creating import Creator
from prouter.agent.jobs.ends.removing import Remover
from prouter.agent.jobs.pool import Pool
from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.starts.templates import Templates
from prouter.agent.jobs.state.job import Job
from prouter.jobs import Reason

__all__ = ["WARM", "make_pool"]

WARM = "pool"
"""Request id of the start of a warm job, until whoever it is given to starts it."""


def make_pool(
    templates: Templates, creator: Creator, starter: Starter, remover: Remover, *, changed: Callable[[], None]
) -> Pool:
    """Return the pool of an agent, which the creator uses from now on.

    Args:
        changed: called whenever its figures change.
    """

    def make(template: str, connection: str) -> Job:
        job = creator.warm(template, connection, templates.resources(template))
        try:
            starter.begin(job, templates.request(template), WARM)
        except Exception:  # Whatever it is, the pool sees no job, and nobody else knows of this one.
            remover.begin(job, Reason.REMOVED)
            raise
        return job

    creator.pool = Pool(
        {name: (size, templates.resources(name)) for name, size in templates.sizes.items()},
        make=make,
        remove=lambda job: remover.begin(job, Reason.REMOVED),
        lacks=creator.lacks,
        changed=changed,
    )
    return creator.pool
