"""Jobs that have outlived their agent: the next one takes them over."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.table import JobTable
from prouter.agent.sandbox.jobs_root import JobsRoot
from prouter.errors import PRouterError
from prouter.jobs import JobRecord
from prouter.runners.interface import Kept, Runner

__all__ = ["Reclaimer"]

_log = logging.getLogger("prouter.agent")


class Reclaimer:
    """Takes over the jobs that the runner has kept.

    Args:
        changed: called with every new record of a job.
    """

    def __init__(
        self, runner: Runner, root: JobsRoot, jobs: JobTable, starter: Starter, *, changed: Callable[[JobRecord], None]
    ) -> None:
        self._runner = runner
        self._root = root
        self._jobs = jobs
        self._starter = starter
        self._changed = changed

    def reclaim(self, kept: Kept) -> None:
        """Take over one job, or end it if it was only kept ready or its record makes no sense."""
        try:
            warm = kept.record.get("warm")
            job = None if warm else Job.reclaim(kept.record, self._root.sandbox(kept.job), self._changed)
        except (KeyError, TypeError, ValueError, PRouterError) as error:
            _log.warning("event=job_not_reclaimed job=%s error=%r", kept.job, str(error))
            job = None
        if job is None:
            self._runner.kill(kept.job)
            self._runner.forget(kept.job)
            return
        self._jobs.add(job)
        if job.record.ended:
            job.sandbox.shut()
        if (kept.spawned is not None or kept.queued is not None) and kept.exit is None:
            job.hold()
        _log.info("event=job_reclaimed job=%s state=%s", job.uid, job.record.state.value)
        self._starter.resume(job, kept)
