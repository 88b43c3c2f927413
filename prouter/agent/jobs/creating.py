"""Creation of jobs: an empty one with its sandbox, a warm one for the pool, or a warm one that becomes somebody's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from gevent.event import Event

from prouter.agent.jobs.ends.removing import Remover
from prouter.agent.jobs.pool import SLOT, Pool
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.space import check_space, used_by
from prouter.agent.jobs.state.table import JobTable, not_found
from prouter.agent.jobs.state.user_pool import UserPool
from prouter.agent.sandbox.jobs_root import JobsRoot
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import LimitReached, PRouterError
from prouter.jobs import JobRecord, Reason
from prouter.processes.users import User
from prouter.resources import Amounts, lacking
from prouter.runners.interface import Runner

__all__ = ["Creator"]

_log = logging.getLogger("prouter.agent")


class Creator:
    """Creates the jobs of one agent.

    Args:
        max_jobs: how many jobs may exist that have not ended; None for any number.
        resources: what jobs may take together.
        users: as whom jobs run; None for the agent's own user.
        kept: all that a later agent needs to know of a job.
        announce: tells the routers of a job's new record.
        arm: has a job end at its time limit.

    Attributes:
        pool: the warm jobs; set once, before the first job is created.
    """

    pool: Pool

    def __init__(
        self,
        runner: Runner,
        root: JobsRoot,
        jobs: JobTable,
        remover: Remover,
        *,
        max_jobs: int | None,
        resources: Amounts,
        users: UserPool | None,
        kept: Callable[[Job], dict[str, Any]],
        announce: Callable[[JobRecord], None],
        arm: Callable[[Job], None],
    ) -> None:
        self._runner = runner
        self._root = root
        self._jobs = jobs
        self._remover = remover
        self._max_jobs = max_jobs
        self._resources = resources
        self._users = users
        self._kept = kept
        self._announce = announce
        self._arm = arm
        self._coming: dict[str, Amounts] = {}
        """By uid, what jobs take that are being made: warm ones give way, which takes time."""
        self._holding: dict[str, Event] = {}
        """By uid, jobs that the runner is asked to hold; set once it does, or does not."""

    def lacks(self, jobs: int, amounts: Amounts) -> set[str]:
        """What is missing for warm jobs beside those that are somebody's, or soon will be.

        Args:
            jobs: how many warm ones.
            amounts: what these take together.

        Returns:
            names of resources, and `SLOT` if there are too few slots.
        """
        coming = list(self._coming.values())
        short = set(lacking(amounts, self._resources, used_by(self._jobs, coming)) if amounts else ())
        slots = self._max_jobs
        return short | {SLOT} if slots is not None and self._jobs.slots + len(coming) + jobs > slots else short

    def create(self, record: JobRecord, router: str) -> JobRecord:
        """Make a job, or give one of the pool if the record names a template of which one is ready.

        Args:
            record: with the uid that its router chose. A job of the pool has another one.
            router: uid of the router that asks.

        Raises:
            See `JobManager.create`.
        """
        sandbox = self._root.sandbox(record.uid)
        known = self._known(record.uid, router)
        if known is not None:
            return known
        if record.uid in self._jobs or self._remover.before(record.uid) is not None:
            raise not_found(record.uid)
        coming = [amounts for uid, amounts in self._coming.items() if uid != record.uid]
        check_space(record.uid, self._jobs, coming, self._max_jobs, self._resources, record.resources)
        ready = self.pool.take(record.template, record.connection) if record.template is not None else None
        if ready is not None:
            return self._give(ready, record, router)
        self._coming[record.uid] = record.resources
        try:
            self.pool.give_way()
            user = self._user()
            known = self._known(record.uid, router)
            if known is not None:  # The call was repeated while this one waited.
                return known
            job = Job(record, sandbox, self._announce)
            job.routers.add(router)
            self._make(job, user)
        finally:
            self._coming.pop(record.uid, None)
            self.pool.wake()
        _log.info("event=job_created job=%s name=%r", record.uid, record.name)
        self._announce(job.record)
        return job.record

    def warm(self, template: str, connection: str, resources: Amounts) -> Job:
        """Make a job that is nobody's yet.

        Args:
            resources: what it takes, as long as nobody needs them.

        Raises:
            LimitReached: the agent has no user for another job.
            NotFound: it was removed at once.
            PRouterError: the sandbox cannot be made.
        """
        uid = uuid4().hex
        record = JobRecord(
            uid, connection, template, created_at=time.time(), template=template, resources=dict(resources)
        )
        user = self._users.choose(self._jobs) if self._users is not None else None
        return self._make(Job(record, self._root.sandbox(uid), self._warm_changed, warm=True), user)

    def _warm_changed(self, record: JobRecord) -> None:
        job = self._jobs.get(record.uid)
        if job is not None and record.ended:
            self._jobs.ended(record.uid)
            self.pool.ended(job)

    def _known(self, uid: str, router: str) -> JobRecord | None:
        """The record of the job that an earlier call with this uid has made or got; None if there was none."""
        known = self._jobs.created(uid)
        if known is None:
            return None
        held = self._holding.get(known.uid)
        if held is not None:
            held.wait()
            return self._known(uid, router)
        job = self._jobs.find(known.uid)
        if router not in job.routers:
            self._note_router(job, router)
        return job.record

    def _note_router(self, job: Job, router: str) -> None:
        """Note that a router wants a job, and have a later agent know it: another may have given the job up.

        Raises:
            PRouterError: the runner cannot keep it.
        """
        job.routers.add(router)
        try:
            self._runner.update_record(job.uid, self._kept(job))
        except BaseException:
            job.routers.discard(router)
            raise

    def _user(self) -> User | None:
        """Choose the user of a new job; a warm job gives way if none is free."""
        if self._users is None:
            return None
        while True:
            try:
                return self._users.choose(self._jobs)
            except LimitReached:
                if not self.pool.free_user():
                    raise

    def _make(self, job: Job, user: User | None) -> Job:
        sandbox: Sandbox = job.sandbox
        if user is not None:
            sandbox.belong_to(user)
        sandbox.create()
        self._jobs.add(job)
        self._coming.pop(job.uid, None)
        held = self._holding[job.uid] = Event()
        try:
            self._runner.hold(job.uid, self._kept(job), str(sandbox.root))
        except BaseException:
            self._jobs.drop(job)
            try:
                sandbox.remove()
            except PRouterError as error:
                _log.warning("event=leftover_not_removed job=%s error=%r", job.uid, error.detail)
            raise
        finally:
            del self._holding[job.uid]
            held.set()
        if job.uid not in self._jobs:  # It was removed before the runner knew it, and could forget it.
            self._remover.forget(job)
            raise not_found(job.uid)
        return job

    def _give(self, job: Job, wanted: JobRecord, router: str) -> JobRecord:
        """Make a warm job somebody's. The runner keeps that first, so that a later agent gives it to nobody else.

        Raises:
            PRouterError: the runner cannot keep it. The job is removed, whatever the error is.
        """
        now = wanted.created_at
        job.give(
            self._announce,
            name=wanted.name,
            owner=wanted.owner,
            key=wanted.key,
            digest=wanted.digest,
            resources=wanted.resources,
            instead_of=wanted.uid,
            created_at=now,
            started_at=now,
        )
        job.routers.add(router)
        self._jobs.given(job)
        self.pool.fit()  # It may take more than its template says.
        job.started.set(job.record)
        try:
            self._runner.update_record(job.uid, self._kept(job))
        except Exception:
            self._remover.begin(job, Reason.REMOVED)
            raise
        _log.info(
            "event=job_given job=%s instead_of=%s template=%s name=%r",
            job.uid,
            wanted.uid,
            wanted.template,
            wanted.name,
        )
        self._arm(job)
        self._announce(job.record)
        return job.record
