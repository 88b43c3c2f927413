"""Periodic checks of running jobs: cut logs that are too long, end jobs whose sandbox exceeds its limit.

Nothing runs while no job does. To measure a sandbox or to cut a log may take long, so both happen in the thread pool of
the event loop, and a large sandbox is measured seldom.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import gevent
from gevent import Greenlet

from prouter.agent.jobs.state.job import Job
from prouter.agent.sandbox.unlinked import unlinked_bytes
from prouter.errors import PRouterError
from prouter.runners.interface import Runner

__all__ = ["Watch"]

INTERVAL = 1.0
"""Seconds between two checks."""
_PACE = 20
"""A sandbox is measured again after this many times the seconds that measuring it took."""

_log = logging.getLogger("prouter.agent")


class Watch:
    """The periodic checks of one agent's jobs.

    Args:
        runner: knows the processes of each job.
        jobs: the jobs that run now.
        log_limit: bytes kept of each log, or None for no limit.
        sandbox_full: called with a job whose sandbox is over its limit, and the size found in bytes.
    """

    def __init__(
        self,
        runner: Runner,
        jobs: Callable[[], Iterable[Job]],
        *,
        log_limit: int | None,
        sandbox_full: Callable[[Job, int], None],
    ) -> None:
        self._runner = runner
        self._remote = not runner.capabilities.same_machine
        self._jobs = jobs
        self._log_limit = log_limit
        self._sandbox_full = sandbox_full
        self._greenlet: Greenlet[..., None] | None = None
        self._walked: dict[str, float] = {}

    def job_runs(self) -> None:
        """Begin to check; called when a job begins to run."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def job_ended(self, job: Job) -> None:
        """Bound the logs of a job that has ended a last time."""
        self._walked.pop(job.uid, None)
        if self._remote:
            gevent.spawn(self._bound_logs, [job])
        else:
            self._bound_logs([job])

    def close(self) -> None:
        """Stop checking."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            gevent.sleep(INTERVAL)
            running = list(self._jobs())
            if not running:
                self._greenlet = None
                return
            self._bound_logs(running)
            for job in running:
                if job.limits.sandbox_size is not None and self._walked.get(job.uid, 0.0) <= time.monotonic():
                    self._walked[job.uid] = float("inf")
                    gevent.spawn(self._measure, job, job.limits.sandbox_size)

    def _bound_logs(self, jobs: list[Job]) -> None:
        limit = self._log_limit
        kept = [job for job in jobs if job.request is not None and not job.request.forward_stdout]
        if limit is None or not kept:
            return
        # A network file system may hang, and would take the whole agent along.
        long = gevent.get_hub().threadpool.apply(_long_logs, (kept, limit)) if self._remote else _long_logs(kept, limit)
        for job, name in long:
            gevent.spawn(self._cut, job, name, limit)

    def _cut(self, job: Job, name: str, limit: int) -> None:
        try:
            dropped = gevent.get_hub().threadpool.apply(job.log(name).enforce_limit, (limit,))
        except PRouterError as error:
            _log.warning("event=log_not_cut job=%s log=%s error=%r", job.uid, name, error.detail)
        else:
            _log.info("event=log_cut job=%s log=%s dropped=%d", job.uid, name, dropped)

    def _measure(self, job: Job, limit: int) -> None:
        began = time.monotonic()
        try:
            # Elsewhere, nobody can see what is open and has no name any more.
            processes = self._runner.processes(job.uid) if self._runner.capabilities.same_machine else []
            size = gevent.get_hub().threadpool.apply(_size, (job, processes))
        except PRouterError as error:
            _log.warning("event=sandbox_not_measured job=%s error=%r", job.uid, error.detail)
            size = 0
        now = time.monotonic()
        if job.alive:
            self._walked[job.uid] = now + (now - began) * _PACE
            if size > limit:
                self._sandbox_full(job, size)


def _long_logs(jobs: list[Job], limit: int) -> list[tuple[Job, str]]:
    return [(job, name) for job in jobs for name in ("stdout", "stderr") if job.sandbox.logs.allocated(name) > limit]


def _size(job: Job, processes: list[int]) -> int:
    user = job.sandbox.user
    unlinked = unlinked_bytes(processes, job.sandbox.root, own_tmp=user is not None and user.isolated)
    return job.sandbox.size_bytes() + unlinked
