"""Jobs that have outlived their agent: the next one takes them over."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent

from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.table import JobTable
from prouter.agent.sandbox.jobs_root import JobsRoot
from prouter.errors import NotFound, PRouterError
from prouter.jobs import JobRecord
from prouter.runners.interface import Kept, Runner

__all__ = ["Reclaimer"]

_FIRST_REST = 5.0
_LONGEST_REST = 300.0
"""Seconds between the first attempts to remove a job that is not taken over, and at most; each time they double."""

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
        self._leaving: dict[str, gevent.Greenlet[..., None]] = {}
        """By uid, those that remove jobs which are not taken over."""

    @property
    def uids(self) -> set[str]:
        """The uids of jobs that are being removed, whose sandboxes are theirs as long as their processes run."""
        return set(self._leaving)

    def close(self) -> None:
        """Remove nothing more: the next agent finds the jobs that are left."""
        gevent.killall(list(self._leaving.values()))

    def reclaim(self, kept: Kept) -> None:
        """Take over one job, or begin to remove it if it was only kept ready or its record makes no sense."""
        if not kept.record.get("warm") and self._taken_over(kept):
            return
        # In a greenlet: while the runner's place is away this takes minutes or fails, and the other jobs do not wait.
        self._leaving[kept.job] = gevent.spawn(self._remove, kept.job)

    def _taken_over(self, kept: Kept) -> bool:
        job = None
        try:
            job = Job.reclaim(kept.record, self._root.sandbox(kept.job), self._changed)
            self._jobs.add(job)
            if job.record.ended:
                job.sandbox.shut()
            if (kept.spawned is not None or kept.queued is not None) and kept.exit is None:
                job.hold()
            self._starter.resume(job, kept)
        except (KeyError, TypeError, ValueError, PRouterError) as error:
            _log.warning("event=job_not_reclaimed job=%s error=%r", kept.job, str(error))
            if job is not None:
                job.detach()
                self._jobs.drop(job)
            return False
        _log.info("event=job_reclaimed job=%s state=%s", job.uid, job.record.state.value)
        return True

    def _remove(self, uid: str) -> None:
        """Remove a job and its sandbox, again until that succeeds: nobody else would."""
        rest = _FIRST_REST
        while True:
            try:
                self._forget(uid)
                sandbox = self._root.sandbox(uid)
                gevent.get_hub().threadpool.apply(sandbox.remove)
            except PRouterError as error:
                _log.warning("event=leftover_not_removed job=%s error=%r", uid, error.logged)
            except Exception:
                _log.exception("event=leftover_not_removed job=%s", uid)
            else:
                _log.info("event=leftover_removed job=%s", uid)
                break
            gevent.sleep(rest)
            rest = min(2 * rest, _LONGEST_REST)
        del self._leaving[uid]

    def _forget(self, uid: str) -> None:
        try:
            self._runner.kill(uid)
            self._runner.forget(uid)
        except NotFound:
            return  # An earlier attempt has got so far.
