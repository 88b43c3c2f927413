"""The job manager: the agent's jobs from creation to removal.

It runs in the agent's gevent loop; every method blocks its own greenlet at most. Jobs run under a `Runner`; each change
of a job is a new record, handed to `on_change`. All that is needed to go on after a restart of the agent is kept with
the runner, so that jobs outlive the agent for as long as the runner was told to keep them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from prouter.agent.expose.endpoint import PortEndpoint, ReportKeys
from prouter.agent.expose.plan import resolve
from prouter.agent.jobs.choice import opened
from prouter.agent.jobs.creating import Creator
from prouter.agent.jobs.ends.ending import Ender
from prouter.agent.jobs.ends.removing import Remover
from prouter.agent.jobs.ends.watch import Watch
from prouter.agent.jobs.origin import UNKNOWN, Origin
from prouter.agent.jobs.reclaiming import Reclaimer
from prouter.agent.jobs.reports import JobReports
from prouter.agent.jobs.servers import JobServers
from prouter.agent.jobs.starts.environment import base_environment
from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.starts.templates import Templates
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.refusals import (
    not_running,
    outcome_of,
    outcome_within,
    refuse_if_wanted,
    refuse_other_start,
)
from prouter.agent.jobs.state.table import JobTable, not_found
from prouter.agent.jobs.state.user_pool import UserPool
from prouter.agent.jobs.warming import WARM, make_pool
from prouter.agent.logs.job_log import JobLog
from prouter.agent.sandbox.jobs_root import JobsRoot
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.socket_places import SocketPlaces
from prouter.errors import Conflict, NotFound, PRouterError
from prouter.jobs import JobRecord, Reason, State
from prouter.requests import START_TIMEOUT, Limits, SignalRequest, signal_number, validated
from prouter.resources import Amounts
from prouter.runners.interface import Exit, Runner
from prouter.template_requests import Template

__all__ = ["JobManager"]

_CLOSE_TIMEOUT = 5.0
"""Seconds that a closing agent waits for each job to become FINISHED, once the runner has ended all."""

_log = logging.getLogger("prouter.agent")


class JobManager:
    """All jobs of one agent.

    Args:
        root: the setting ``jobs.root``, a directory of this agent alone.
        properties: the agent's properties, which jobs get as environment variables.
        max_jobs: how many jobs may exist that have not ended; None for any number.
        resources: what jobs may take of each resource.
        ceilings: the highest limits of any job.
        log_limit: bytes kept of each log of a job; None for all.
        runner: where jobs run.
        runner_name: the setting ``jobs.runner``.
        home: HOME of jobs whose request does not say, ``agent`` or ``sandbox``.
        environ: the agent's own environment; by default that of this process.
        users: as whom jobs run; None for the agent's own user.
        templates: by name, as ``jobs.pool`` has them.
        on_pool: called whenever the figures of the pool change.
        on_change: called with every new record of a job.
        on_removed: called with the last record, in the state CLOSED, of a job that was removed.

    Attributes:
        servers: connects to jobs' servers.
        pool: the jobs that are kept ready.
    """

    def __init__(
        self,
        *,
        root: Path,
        runner: Runner,
        runner_name: str = "local",
        properties: Mapping[str, Any],
        max_jobs: int | None = None,
        resources: Amounts | None = None,
        ceilings: Limits | None = None,
        log_limit: int | None = None,
        home: str = "agent",
        environ: Mapping[str, str] | None = None,
        users: UserPool | None = None,
        templates: Mapping[str, Template] | None = None,
        on_pool: Callable[[], None] = lambda: None,
        on_change: Callable[[JobRecord], None],
        on_removed: Callable[[JobRecord], None],
    ) -> None:
        self._runner = runner
        self._ceilings = ceilings or Limits()
        self._on_change = on_change
        self._on_removed = on_removed
        self._root = JobsRoot(root, users=users is not None, entered=users is not None and not users.isolated)
        self._sockets = SocketPlaces(self._root.path, shared=users is not None)
        self._jobs = JobTable()
        self._open = False
        self._incarnation: str | None = None
        self._endpoint_port = 0
        self._endpoint = PortEndpoint(lambda *report: self._reports.port_with_key(*report))
        self._ender = Ender(runner, keep=self._keep, finished=lambda job: self._watch.job_ended(job))
        self._remover = Remover(runner, self._ender, removed=self._jobs.drop)
        self._watch = Watch(
            runner, lambda: self._jobs.alive, log_limit=log_limit, sandbox_full=self._ender.sandbox_full
        )
        self._starter = Starter(
            runner,
            runner_name,
            self._sockets,
            self._ender,
            environment=base_environment(os.environ if environ is None else environ, properties),
            ceilings=self._ceilings,
            home=home,
            report_url=lambda uid: self._endpoint.url(self._reports.keys.of(uid)),
            kept=self._kept,
            keep=self._keep,
            runs=self._watch.job_runs,
        )
        self._reports = JobReports(self._jobs, self._starter, self._ender, keep=self._keep)
        self._reclaimer = Reclaimer(runner, self._root, self._jobs, self._starter, changed=self._changed)
        self.servers = JobServers(self._jobs, runner, self._starter)
        self._templates = Templates(templates or {}, self._ceilings, resources or {})
        self._creator = Creator(
            runner,
            self._root,
            self._jobs,
            self._remover,
            max_jobs=max_jobs,
            resources=resources or {},
            users=users,
            kept=self._kept,
            announce=self._changed,
            arm=self._ender.arm,
        )
        self.pool = make_pool(self._templates, self._creator, self._starter, self._remover, changed=on_pool)

    # The life of the agent.

    def open(self) -> None:
        """Lock the root, take over the jobs that outlived an earlier agent, and remove the remains of all others.

        Raises:
            Conflict: another agent uses the root or the runner.
            Forbidden: the root cannot be used.
            AgentUnavailable: the runner does not work.
        """
        self._root.open()
        try:
            kept = opened(self._runner, self._reports)
            found = next((item.record for item in kept if "incarnation" in item.record), {})
            self._incarnation = found.get("incarnation") or uuid4().hex
            self._reports.keys = ReportKeys(found.get("endpoint_secret"))
            self._endpoint_port = self._endpoint.open(found.get("endpoint_port"))
        except BaseException:
            self._root.close()
            raise
        self._open = True
        for item in kept:
            self._reclaimer.reclaim(item)
        self._reports.begin()
        self._root.sweep(self._jobs.uids | self._reclaimer.uids)
        alive = self._jobs.alive
        sockets = {job.exposure.socket for job in alive if job.exposure and job.exposure.socket}
        self._sockets.sweep(sockets | {job.scratch.link for job in alive if job.scratch and job.scratch.link})

    @property
    def incarnation(self) -> str:
        """The agent's incarnation, 32 hex digits: that of the jobs it took over, or a new one. Set by `open`.

        The connections' uids, and with them the jobs' paths, are made from it.
        """
        if self._incarnation is None:
            raise RuntimeError("the job manager is not open")
        return self._incarnation

    def close(self, *, end_jobs: bool) -> None:
        """Stop; with `end_jobs` end every process and remove every sandbox, otherwise the runner keeps them."""
        if not self._open:
            return
        self._open = False
        self._watch.close()
        self.pool.close()
        self._reclaimer.close()
        self._endpoint.close()
        jobs = list(self._jobs)
        if not end_jobs:
            for job in jobs:
                if job.starting is not None:
                    job.starting.kill()
                job.detach()
        lost = [job for job in jobs if job.alive] if end_jobs else []
        for job in lost:
            job.end(Reason.AGENT_LOST, "the agent was shut down")
        self._runner.close(end_jobs=end_jobs)
        if end_jobs:
            for job in lost:
                self._reports.exited(Exit(job.uid, None, None, None, 0.0, 0, time.time()))
            for job in lost:
                job.ended.wait(_CLOSE_TIMEOUT)
            self._root.sweep(())
            self._root.sweep_moved(job.sandbox for job in jobs)
            self._sockets.sweep(set())
        self._root.close()

    # The calls of routers.

    def records(self) -> list[JobRecord]:
        """The records of all jobs that routers know of and that were not removed."""
        return [job.record for job in self._jobs.told]

    def record(self, uid: str) -> JobRecord:
        """A job's record. Raises `NotFound`."""
        return self._jobs.find(uid).record

    def made_by(self, key: str) -> JobRecord | None:
        """The record of the job that an idempotency key with this hash has given; None if it was removed."""
        job = self._jobs.made_by(key)
        return job.record if job is not None else None

    def created(self, uid: str) -> JobRecord | None:
        """The record of the job that the creation with this uid has given; None if there is none."""
        job = self._jobs.created(uid)
        return job.record if job is not None else None

    def create(self, uid: str, connection: str, name: str, origin: Origin = UNKNOWN) -> JobRecord:
        """Make a job and its sandbox, or give one of the pool, which has another uid.

        A known uid gives the job that it names, or that was given instead.

        Raises:
            LimitReached: the agent has as many jobs as it may, no user for another one, or too little of a resource.
            NotFound: a job with this uid was removed; there is no such template.
            InvalidRequest, NoSpace, Forbidden: the uid is malformed; the sandbox cannot be made.
        """
        record = origin.record(uid, connection, name)
        if origin.template is not None:
            self._templates.request(origin.template)
            record = replace(record, resources={**self._templates.resources(origin.template), **record.resources})
        return self._creator.create(record, origin.router)

    def start(self, uid: str, request: Mapping[str, Any], request_id: str, wait: float | None = None) -> JobRecord:
        """Start a job; return its record once it is RUNNING and its server is ready.

        If its start waits in a queue, the record is returned as it is after `wait` seconds, or else after the time that
        the start may take by its ``expose``; the start goes on.

        The same `request_id` gives the same answer again, also while the start is under way.

        Raises:
            InvalidRequest: the request is malformed; the job stays NEW.
            Conflict: the job was started by another request.
            KeyReused: the same `request_id` came with another request.
            StartFailed: the job did not start; the detail says why, with the end of its stderr.
            NotFound: there is no such job.
        """
        job = self._jobs.find(uid)
        begun = False
        if job.start_id is None:
            said = self._templates.said(job, request)
            begun = self._starter.begin(job, self._templates.wanted(said), request_id, said, wait)
        elif job.start_id == WARM:
            self._starter.adopt(job, self._templates.said(job, request), request_id)
            begun = True
        if not begun:
            refuse_other_start(job, request, request_id)
        patience = resolve(job.request).timeout if job.request is not None else START_TIMEOUT
        return outcome_within(job, wait, patience)

    def remove(self, uid: str, *, unwanted_by: str | None = None, withdraw: bool = False) -> JobRecord:
        """End a job, delete its sandbox and forget it; return its record as it was before, also if repeated.

        Args:
            unwanted_by: uid of a router that gave up the job's creation.
            withdraw: let the job's idempotency key give another job.

        Raises:
            Conflict: the job is unwanted, but another router has created it for the same key.
            NotFound: there is no such job.
            PRouterError: a process or a file of the job cannot be removed; try again.
        """
        before = self._remover.before(uid)
        if before is not None:
            return before
        job = self._jobs.get(uid)
        if job is None or job.warm:
            raise not_found(uid)
        if unwanted_by is not None:
            refuse_if_wanted(job, unwanted_by)
        if withdraw:
            job.withdraw_key()
        return outcome_of(self._remover.begin(job, Reason.REMOVED))

    def remove_all(self, reason: Reason) -> None:
        """End and remove every job, for this reason, because no router is linked any more."""
        self.pool.accept(False)
        for answer in [self._remover.begin(job, reason) for job in self._jobs]:
            answer.wait()

    def signal(self, uid: str, name: str) -> JobRecord:
        """Send a signal to the job's first process.

        Raises:
            InvalidRequest: there is no such signal.
            Conflict: the job does not run.
        """
        number = signal_number(validated(SignalRequest, {"signal": name}).signal)
        job = self._jobs.find(uid)
        if not job.alive:
            raise not_running(job)
        self._runner.signal(uid, number, tree=False)
        return job.record

    def stop(self, uid: str, grace: float) -> JobRecord:
        """End a job: SIGTERM to its whole tree, SIGKILL after `grace` seconds. Return its record once it has ended.

        Raises:
            Conflict: the job was never started.
        """
        job = self._jobs.find(uid)
        if job.start_id is None:
            raise not_running(job)
        self._ender.end(job, Reason.STOPPED, grace=grace)
        return job.record

    def usage(self, uid: str) -> JobRecord:
        """The record with what the job uses now, or has used in all if it has ended. Routers are not told."""
        job = self._jobs.find(uid)
        if not job.alive:
            return job.record
        try:
            used = self._runner.usage(uid)
        except (NotFound, Conflict):
            return job.record  # The job has ended meanwhile.
        return replace(job.record, cpu_seconds=used.cpu_seconds, rss_bytes=used.rss_bytes)

    def sandbox(self, uid: str) -> Sandbox:
        """The job's sandbox. Raises `NotFound`."""
        return self._jobs.find(uid).sandbox

    def sandbox_limit(self, uid: str) -> int | None:
        """Bytes the job's sandbox may hold, None for any number. Raises `NotFound`."""
        job = self._jobs.find(uid)
        return (self._ceilings if job.start_id is None else job.limits).sandbox_size

    def log(self, uid: str, name: str) -> JobLog:
        """The job's ``stdout`` or ``stderr``, the same object for all. Raises `NotFound`, `InvalidRequest`."""
        return self._jobs.find(uid).log(name)

    # Parts of the above.

    def _kept(self, job: Job) -> dict[str, Any]:
        endpoint = {"endpoint_port": self._endpoint_port, "endpoint_secret": self._reports.keys.secret}
        return {**job.kept(), "incarnation": self._incarnation, **endpoint}

    def _keep(self, job: Job) -> None:
        try:
            self._runner.update_record(job.uid, self._kept(job))
        except PRouterError as error:
            if self._open:  # Else the jobs ended with the agent, and nobody reads their records.
                _log.warning("event=record_not_kept job=%s error=%r", job.uid, error.detail)

    def _changed(self, record: JobRecord) -> None:
        if record.ended:
            self._jobs.ended(record.uid)
            self.pool.wake()
        if record.state is State.CLOSED:
            self._on_removed(record)
        else:
            self._on_change(record)
