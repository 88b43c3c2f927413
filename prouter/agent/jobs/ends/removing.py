"""Removal of jobs: end the job, delete its sandbox, have the runner forget it. Once, however often it is requested."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import gevent
from gevent.event import AsyncResult

from prouter.agent.jobs.ends.ending import Ender
from prouter.agent.jobs.state.job import Job
from prouter.agent.sandbox.jobs_root import is_small
from prouter.errors import PRouterError
from prouter.jobs import JobRecord, Reason, State
from prouter.runners.interface import Runner

__all__ = ["Remover"]

_TOMBSTONES = 4096
"""Removed jobs that are remembered, so that a repeated removal gets the same answer."""

_log = logging.getLogger("prouter.agent")


class Remover:
    """Removes the jobs of one agent.

    Args:
        removed: called with each removed job, before it becomes CLOSED.
    """

    def __init__(self, runner: Runner, ender: Ender, *, removed: Callable[[Job], None]) -> None:
        self._runner = runner
        self._ender = ender
        self._removed = removed
        self._tombstones: OrderedDict[str, JobRecord] = OrderedDict()

    def before(self, uid: str) -> JobRecord | None:
        """The record of a removed job as it was before, if it is still remembered."""
        return self._tombstones.get(uid)

    def begin(self, job: Job, reason: Reason) -> AsyncResult[JobRecord]:
        """Begin to remove a job, unless that is under way.

        Returns:
            The outcome: the record as it was before, or an error after which the job exists as before.
        """
        answer = job.removed
        if answer is None:
            answer = job.removed = AsyncResult()
            gevent.spawn(self._answer, job, answer, reason)
        return answer

    def _answer(self, job: Job, answer: AsyncResult[JobRecord], reason: Reason) -> None:
        """Run a removal in its greenlet. Whatever happens, there is an outcome."""
        try:
            before = self._remove(job, reason)
        except PRouterError as error:
            job.removed = None
            answer.set_exception(error)
        except Exception:
            _log.exception("event=removal_broke job=%s", job.uid)
            job.removed = None
            answer.set_exception(
                PRouterError("internal error of the agent; the agent's log has the details", job=job.uid)
            )
        else:
            answer.set(before)
            self.forget(job)

    def _remove(self, job: Job, reason: Reason) -> JobRecord:
        before = job.record
        self._ender.end(job, reason)
        job.release()
        if self._runner.capabilities.same_machine and is_small(job.sandbox):
            job.sandbox.remove()
        else:
            gevent.get_hub().threadpool.apply(job.sandbox.remove)
        job.detach()
        self._tombstones[job.uid] = before
        if before.instead_of is not None:
            self._tombstones[before.instead_of] = before
        while len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)
        self._removed(job)
        job.change(State.CLOSED)
        _log.info("event=job_removed job=%s", job.uid)
        return before

    def forget(self, job: Job) -> None:
        """Have the runner forget a job that was removed."""
        try:
            self._runner.forget(job.uid)
        except PRouterError as error:
            _log.warning("event=job_not_forgotten job=%s error=%r", job.uid, error.detail)
