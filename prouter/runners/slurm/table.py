"""The table of jobs, the threads that use their files, and the order of reports to the agent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.threadpool import ThreadPool

from prouter.errors import NotFound
from prouter.runners.interface import Exit, Queued, Reports, Spawned
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node import job_files

__all__ = ["Table"]

Value = TypeVar("Value")

_FILES_AT_ONCE = 8

_log = logging.getLogger("prouter.runner")


class Table:
    """All jobs of the runner.

    Args:
        directory: holds one directory for each job.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jobs: dict[str, Job] = {}
        self._files = ThreadPool(_FILES_AT_ONCE)
        self._reports: Reports | None = None

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def open(self, reports: Reports) -> None:
        """Report to this agent from now on."""
        self._reports = reports

    def close(self) -> None:
        """Report nothing more, and end the threads."""
        self._reports = None
        self._files.kill()

    def get(self, uid: str) -> Job | None:
        """A job; None if it is not known."""
        return self._jobs.get(uid)

    def find(self, uid: str) -> Job:
        """A job. Raises `NotFound`."""
        job = self._jobs.get(uid)
        if job is None:
            raise NotFound(f"job '{uid}' is not found", job=uid)
        return job

    def add(self, uid: str, record: dict[str, Any], sandbox: str | None) -> Job:
        """Add a job that is held, or put a new start in the place of one that has failed."""
        job = self._jobs[uid] = Job(uid, self._directory / uid, record, sandbox)
        return job

    def drop(self, job: Job) -> None:
        """Forget a job."""
        if self._jobs.get(job.uid) is job:
            del self._jobs[job.uid]

    def files(self, function: Callable[..., Value], *args: Any) -> Value:
        """Call a function that uses files, which may take long on a network; only this greenlet waits."""
        result: Value = self._files.apply(function, args)
        return result

    def read(self, job: Job, name: str) -> Any:
        """The content of one of a job's files; None if it has none that can be read."""
        try:
            return self.files(job_files.read, str(job.directory), name)
        except (OSError, ValueError) as error:
            _log.warning("event=job_file_not_read job=%s file=%s error=%r", job.uid, name, str(error))
            return None

    def store(self, job: Job, name: str, content: Any) -> None:
        """Write one of a job's files. Raises `OSError`."""
        with job.files:
            if self._jobs.get(job.uid) is not job:
                return  # It was dropped meanwhile, and its directory deleted.
            self.files(job_files.write, str(job.directory), name, content)

    # What happens to jobs.

    def queued(self, job: Job, queued: Queued) -> None:
        """A start waits for this reason."""
        if job.waiting and queued != job.queued:
            job.queued = queued
            self._report(job, lambda reports: reports.queued(queued))

    def running(self, job: Job, spawned: Spawned) -> None:
        """A job's first process runs."""
        if job.waiting:
            job.spawned = spawned = replace(spawned, started_at=job.moment(spawned.started_at))
            job.change(JobState.RUNNING)
            _log.info("event=slurm_job_runs job=%s node=%s number=%s", job.uid, spawned.node, job.number)
            self._report(job, lambda reports: reports.running(spawned))

    def ended(self, job: Job, end: Exit) -> None:
        """A job has ended."""
        if job.state in (JobState.HELD, JobState.ENDED):
            return
        end = replace(end, at=job.moment(end.at))
        job.exit, job.ending = end, None
        job.change(JobState.ENDED)
        gevent.spawn(self._keep_end, job, end)
        if job.link is not None:
            job.link.close()
        _log.info("event=slurm_job_ended job=%s number=%s reason=%s", job.uid, job.number, end.reason)
        self._report(job, lambda reports: reports.exited(end))

    def _keep_end(self, job: Job, end: Exit) -> None:
        """Write down how a job ended: Slurm forgets it in minutes (MinJobAge in slurm.conf(5))."""
        try:
            self.store(job, job_files.END, asdict(end))
        except OSError as error:
            if self._jobs.get(job.uid) is job:
                _log.warning("event=end_not_written job=%s error=%r", job.uid, str(error))

    def tell(self, job: Job, *, running: bool) -> None:
        """Send reports about a job from now on, in a greenlet, beginning with those that were held back.

        Args:
            running: whether its running is among those; else the agent knows that, and hears only of the end.
        """
        if job.told:
            return
        job.told = True
        waiting, job.reports = job.reports, []
        if not running:
            waiting = [report for report in waiting if report[0] is JobState.ENDED]
        for _, report in waiting:
            self._send(job, report)

    def _report(self, job: Job, report: Callable[[Reports], None]) -> None:
        if job.told:
            self._send(job, report)
        else:
            job.reports.append((job.state, report))

    def _send(self, job: Job, report: Callable[[Reports], None]) -> None:
        job.outbox.append(report)
        if not job.sending:
            job.sending = True
            gevent.spawn(self._drain, job)

    def _drain(self, job: Job) -> None:
        try:
            while job.outbox:
                report = job.outbox.pop(0)
                if self._reports is not None and self._jobs.get(job.uid) is job:
                    report(self._reports)
        except Exception:
            _log.exception("event=report_failed job=%s", job.uid)
        finally:
            job.sending = False
