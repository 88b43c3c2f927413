"""The end of jobs: by themselves, on request, or because of a limit. Every end goes through `Ender.finish`."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

import gevent

from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.outcome import outcome
from prouter.errors import PRouterError
from prouter.jobs import JobRecord, Reason, State
from prouter.runners.interface import Runner

__all__ = ["Ender"]

_LIMIT_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a job that exceeded its time limit."""
_END_TIMEOUT = 30.0
"""Seconds to wait for the end of a killed job. A process that waits for a failed disk may never end."""
_NEXT_TRY = 5.0
"""Seconds until a job that could not be ended at its time limit is ended again."""

_log = logging.getLogger("prouter.agent")


class Ender:
    """Ends the jobs of one agent.

    Args:
        keep: gives the runner what a later agent needs to know of a job.
        finished: called with each job that becomes FINISHED.
    """

    def __init__(self, runner: Runner, *, keep: Callable[[Job], None], finished: Callable[[Job], None]) -> None:
        self._runner = runner
        self._keep = keep
        self._finished = finished

    def finish(self, job: Job) -> JobRecord:
        """Make a job FINISHED. No process of it may be left."""
        job.release()
        job.sandbox.shut()
        record = job.change(State.FINISHED, **outcome(job))
        reason = record.reason.value if record.reason else None
        _log.info(
            "event=job_ended job=%s reason=%s exit_code=%s signal=%s", job.uid, reason, record.exit_code, record.signal
        )
        self._finished(job)
        if job.ending is not None or job.failure is not None:
            self._keep(job)  # The runner does not know this part of the outcome.
        return record

    def kill(self, job: Job) -> None:
        """Kill a job's process tree, and wait for its end.

        Raises:
            PRouterError: it does not end in time; the runner's own error if it could not kill it.
        """
        failure = None
        try:
            self._runner.kill(job.uid)
        except PRouterError as error:
            _log.warning("event=job_not_killed job=%s error=%r", job.uid, error.detail)
            failure = error
        if not job.exited.wait(_END_TIMEOUT):
            _log.error("event=job_does_not_end job=%s", job.uid)
            if failure is not None:
                raise failure
            raise PRouterError(
                f"job '{job.uid}' was killed, but has not ended in {_END_TIMEOUT:g} s: a process may wait for a disk",
                job=job.uid,
                code="not_ended",
            )

    def end(self, job: Job, reason: Reason, text: str | None = None, *, grace: float | None = None) -> None:
        """End a job and wait until it is FINISHED. A job that has ended or was never started stays as it is.

        Args:
            grace: seconds between SIGTERM and SIGKILL to its whole tree; None for SIGKILL at once.

        Raises:
            PRouterError: as of `kill`.
        """
        if job.start_id is None or job.record.ended:
            return
        job.end(reason, text)
        if job.is_queued:
            self.kill(job)  # `Starter` makes it FINISHED.
        elif job.record.state is State.NEW:
            self._end_start(job)
        elif grace is None or not self._terminated(job, grace):
            self.kill(job)
        if not job.ended.wait(_END_TIMEOUT):
            raise PRouterError(f"job '{job.uid}' has not ended after {_END_TIMEOUT:g} s", job=job.uid, code="not_ended")

    def _end_start(self, job: Job) -> None:
        """End a job that the runner is just asked to start: `Starter` does, unless the start waits in a queue then."""
        gevent.wait([job.started, job.accepted], count=1)
        if job.is_queued:
            self.kill(job)
        else:
            job.started.wait()

    def _terminated(self, job: Job, grace: float) -> bool:
        try:
            self._runner.signal(job.uid, signal.SIGTERM, tree=True)
        except PRouterError as error:
            _log.info("event=job_not_signalled job=%s error=%r", job.uid, error.detail)
        return bool(job.ended.wait(grace))

    def arm(self, job: Job) -> None:
        """Have a running job end at its time limit. The time of a warm job begins when it is given to somebody."""
        limit, began = job.limits.timeout, job.record.started_at
        if job.expiry is not None:
            job.expiry.kill(block=False)
            job.expiry = None
        if job.warm:
            return
        if limit is not None and began is not None:
            job.expiry = gevent.spawn_later(max(0.0, began + limit - time.time()), self._expire, job, limit)

    def _expire(self, job: Job, limit: float) -> None:
        job.expiry = None  # Else `release` would kill the greenlet that runs this.
        self._over(job, Reason.TIMEOUT, f"it ran longer than its limit of {limit:g} seconds", _LIMIT_GRACE)
        if job.alive and job.expiry is None:
            job.expiry = gevent.spawn_later(_NEXT_TRY, self._expire, job, limit)

    def sandbox_full(self, job: Job, size: int) -> None:
        """End a job whose sandbox exceeds its limit.

        Args:
            size: bytes that the sandbox takes.
        """
        limit = job.limits.sandbox_size
        self._over(job, Reason.SANDBOX, f"its sandbox takes {size} bytes, its limit is {limit}", None)

    def _over(self, job: Job, reason: Reason, text: str, grace: float | None) -> None:
        try:
            self.end(job, reason, text, grace=grace)
        except PRouterError as error:
            _log.error("event=limit_not_enforced job=%s reason=%s error=%r", job.uid, reason.value, error.detail)
