"""Starts of jobs: submission to Slurm, once and for sure, and the wait for the job's first process."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Any

import gevent

from prouter.errors import AgentUnavailable, Conflict, InvalidRequest, NoSpace, StartFailed
from prouter.runners.interface import Queued, Spawned, SpawnSpec
from prouter.runners.slurm import commands
from prouter.runners.slurm.controller import Controller, submit_environment
from prouter.runners.slurm.exits import never_ran
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.options import SlurmOptions, requested, sbatch_options
from prouter.runners.slurm.shipping import batch_script
from prouter.runners.slurm.table import Table

__all__ = ["Starts"]

_SUBMISSION = 2.0
"""Least seconds that a start waits for Slurm's answer, so that a refusal is told at once."""
_NOT_STARTED = frozenset({"start_failed", "port_taken"})

_log = logging.getLogger("prouter.runner")


class Starts:
    """Starts jobs.

    Args:
        agent: the tag of this agent's jobs (`commands.tag`).
        code: the code for nodes.
    """

    def __init__(
        self,
        table: Table,
        controller: Controller,
        follower: Follower,
        options: SlurmOptions,
        *,
        agent: str,
        code: Path,
    ) -> None:
        self._table = table
        self._controller = controller
        self._follower = follower
        self._options = options
        self._agent = agent
        self._code = code

    def start(self, job: Job, spec: SpawnSpec, wait: float) -> Spawned | Queued:
        """Start a held job; see `Runner.spawn`."""
        if job.state is not JobState.HELD:
            raise Conflict(f"job '{job.uid}' was started already", job=job.uid)
        wanted, resources = requested(spec.resources, spec.options)
        try:
            options = sbatch_options(
                self._options, wanted, resources, memory_limit=spec.limits.memory, timeout=spec.timeout
            )
        except ValueError as error:
            raise InvalidRequest(f"Invalid request: {error}", job=job.uid) from None
        job.record, job.secret = spec.record, secrets.token_hex(32)
        job.asking = True  # Nobody else is to submit it while its files are being written.
        job.change(JobState.SUBMITTING)
        job.name = commands.job_name(spec.name, job.uid)
        content = {**_content(spec, job.secret), "name": job.name, "sbatch": options}
        try:
            self._table.store(job, job_files.RECORD, {"record": job.record, "sandbox": job.sandbox})
            self._table.store(job, job_files.JOB, content)
        except OSError as error:
            job.asking = False
            job.change(JobState.HELD)
            raise NoSpace(f"the job cannot be written to {job.directory}: {error}", job=job.uid) from error
        gevent.spawn(self.submit, job, content)
        return self._outcome(job, wait)

    def _outcome(self, job: Job, wait: float) -> Spawned | Queued:
        """Wait for what becomes of a start."""
        now = time.monotonic()
        deadline, submitted_by = now + wait, now + max(wait, _SUBMISSION)
        try:
            while True:
                job.news.clear()
                if job.failure is not None or job.state not in (JobState.SUBMITTING, JobState.QUEUED):
                    break
                until = submitted_by if job.state is JobState.SUBMITTING else deadline
                left = until - time.monotonic()
                if left <= 0:
                    break
                job.news.wait(left)
            failure = self._failure(job)
        finally:
            # Also when the greenlet is killed: the start goes on, and whoever comes next is told.
            self._table.tell(job, running=False) if job.spawned is not None else self._table.tell(job, running=True)
        if failure is not None:
            raise StartFailed(failure, job=job.uid)
        return job.spawned if job.spawned is not None else job.queued

    def _failure(self, job: Job) -> str | None:
        """Why the start has failed, if it has; the job is held again then."""
        text = job.failure
        if text is None and job.exit is not None and job.exit.reason in _NOT_STARTED and job.spawned is None:
            text = job.exit.text
        if text is None:
            return None
        again = self._table.add(job.uid, job.record, job.sandbox)
        again.past = job.past | ({job.number} if job.number is not None else set())
        self._table.files(lambda: job_files.clear(str(job.directory), everything=False))
        return text

    def submit(self, job: Job, content: dict[str, Any]) -> None:
        """Ask Slurm to run a job, once. If it cannot be known whether Slurm has it, the follower goes on."""
        job.asking = True
        try:
            if job.waiting:  # Else it was ended before it was submitted.
                self._ask(job, content)
        except AgentUnavailable as error:
            _log.warning("event=not_submitted job=%s error=%r", job.uid, error.detail)
            self._table.queued(job, Queued(job.uid, error.detail))
        except OSError as error:
            self._refused(job, str(error))
        finally:
            job.asking = False
            job.asked_at = time.monotonic()
            self._follower.soon()

    def _ask(self, job: Job, content: dict[str, Any]) -> None:
        argv = commands.submit(
            agent=self._agent,
            job=job.uid,
            name=job.name,
            directory=str(job.directory),
            log=str(job.directory / job_files.LOG),
            options=content["sbatch"],
        )
        outcome = self._controller.change(argv, batch_script(self._code, job.directory, self._options.python))
        if outcome.code:
            self._refused(job, f"Slurm refuses it: {commands.refusal(outcome.stderr)}")
            return
        try:
            number = commands.parse_submitted(outcome.stdout)
        except ValueError:
            raise AgentUnavailable(f"sbatch has printed no id: {outcome.stdout!r:.200}") from None
        self.submitted(job, number)

    def take_back(self, job: Job) -> bool:
        """Take a start back, so that no node will begin it; False if a node was faster. Raises `AgentUnavailable`."""
        try:
            before = self._table.files(job_files.claim, str(job.directory), {"agent": self._agent})
        except OSError as error:
            raise AgentUnavailable(f"{job.directory} cannot be written to: {error}", job=job.uid) from error
        return before is None or not before.get(job_files.NODE)

    def runs_as(self, job: Job, number: int) -> None:
        """A batch job with this number has the job, instead of the one that was thought to have it.

        sbatch, or the controller, may carry out late what it was given up for, after the job was submitted again.
        """
        if number == job.number:
            return
        other, job.number, job.seen_at = job.number, number, time.monotonic()
        if other is not None:
            job.past.add(other)
        job.past.discard(number)
        _log.warning("event=runs_as job=%s number=%d instead_of=%s", job.uid, number, other)
        try:
            self._table.store(job, job_files.SUBMITTED, {"number": number, "at": job.submitted_at or time.time()})
        except OSError as error:  # After a restart of the agent, its claim tells.
            _log.warning("event=number_not_written job=%s error=%r", job.uid, str(error))

    def submitted(self, job: Job, number: int) -> None:
        """Slurm has the job under this number."""
        job.number, job.submitted_at, job.seen_at = number, time.time(), time.monotonic()
        job.reissued = any(other.number == number for other in self._table if other is not job)
        _log.info("event=submitted job=%s number=%d", job.uid, number)
        if job.state is JobState.SUBMITTING:
            job.change(JobState.QUEUED)
        try:
            self._table.store(job, job_files.SUBMITTED, {"number": number, "at": job.submitted_at})
        except OSError as error:  # After a restart of the agent, the tag finds the job.
            _log.warning("event=number_not_written job=%s error=%r", job.uid, str(error))

    def _refused(self, job: Job, text: str) -> None:
        """End a start that was not submitted, unless it was: sbatch may fail after Slurm has taken the job."""
        try:
            if not job.waiting or not self.take_back(job):
                _log.warning("event=submitted_in_spite job=%s error=%r", job.uid, text)
                return
        except AgentUnavailable as error:  # The next look at the queue decides.
            _log.warning("event=not_taken_back job=%s error=%r", job.uid, error.detail)
            return
        if job.told:
            self._table.ended(job, never_ran(job.uid, "start_failed", text))
        else:
            job.failure = text
            job.news.set()

    def again(self, job: Job) -> None:
        """Submit a job that Slurm does not have, because sbatch or Slurm's controller failed."""
        if job.asking:
            return
        content = self._table.read(job, job_files.JOB)
        if content is None:
            self._refused(job, f"its file in {job.directory} is lost")
            return
        if job.number is not None:
            job.past.add(job.number)
            job.number = None
            job.change(JobState.SUBMITTING)
        _log.warning("event=submitted_again job=%s", job.uid)
        self.submit(job, content)


def _content(spec: SpawnSpec, secret: str) -> dict[str, Any]:
    """What a node has to know of a job."""
    return {
        "secret": secret,
        "sandbox": spec.remove_on_loss,
        "port": spec.port,
        "report_variable": spec.report_variable,
        "given": sorted(submit_environment()),
        "spec": {
            "job": spec.job,
            "argv": spec.argv,
            "env": spec.env,
            "cwd": spec.cwd,
            "stdout": spec.stdout,
            "stderr": spec.stderr,
            "limits": spec.limits._asdict(),
        },
    }
