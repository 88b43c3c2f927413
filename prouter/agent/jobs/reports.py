"""What the runner and the jobs report to the agent: waits in a queue, starts, ends, and ports."""

from __future__ import annotations

from collections.abc import Callable

from prouter.agent.expose.endpoint import ReportKeys
from prouter.agent.jobs.ends.ending import Ender
from prouter.agent.jobs.starts.starting import Starter
from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.table import JobTable, not_found
from prouter.errors import InvalidRequest
from prouter.jobs import State
from prouter.runners.interface import Exit, Queued, Spawned

__all__ = ["JobReports"]


class JobReports:
    """The `Reports` of one agent's runner. Reports about jobs that are not known any more change nothing.

    Jobs of an earlier agent may change as soon as the runner is open, and before this agent knows them: such reports
    are kept until `begin`.

    Args:
        keep: gives the runner what a later agent needs to know of a job.

    Attributes:
        keys: by which jobs of this machine show that they report for themselves.
    """

    def __init__(self, jobs: JobTable, starter: Starter, ender: Ender, *, keep: Callable[[Job], None]) -> None:
        self.keys = ReportKeys()
        self._jobs = jobs
        self._starter = starter
        self._ender = ender
        self._keep = keep
        self._early: list[Callable[[], None]] | None = []

    def begin(self) -> None:
        """Take the reports that came before the agent knew the runner's jobs, and all others at once from now on."""
        early, self._early = self._early, None
        for report in early or ():
            report()

    def queued(self, queued: Queued) -> None:
        """See `Reports.queued`."""
        if self._early is not None:
            self._early.append(lambda: self.queued(queued))
            return
        job = self._jobs.get(queued.job)
        if job is not None:
            job.queued(queued)

    def running(self, spawned: Spawned) -> None:
        """See `Reports.running`."""
        if self._early is not None:
            self._early.append(lambda: self.running(spawned))
            return
        job = self._jobs.get(spawned.job)
        if job is not None and job.spawned is None:
            job.has_started(spawned)

    def exited(self, end: Exit) -> None:
        """See `Reports.exited`."""
        if self._early is not None:
            self._early.append(lambda: self.exited(end))
            return
        job = self._jobs.get(end.job)
        if job is None or job.exit is not None:
            return
        job.process_ended(end)
        if job.record.state is State.RUNNING:
            self._ender.finish(job)  # In other states its start does so.

    def port(self, job: str, port: int) -> None:
        """See `Reports.port`."""
        found = self._jobs.get(job)
        if found is None:
            raise not_found(job)
        if found.exposure is None or found.record.ended:
            raise InvalidRequest("the job is not waiting for a port")
        found.exposure.report(port, lambda: self._starter.sockets(found))
        self._keep(found)

    def port_with_key(self, job: str, port: int, key: str) -> None:
        """Take the report of a job of this machine, which anybody there could send.

        Raises:
            PRouterError: the report is refused.
        """
        self.keys.check(job, key)
        self.port(job, port)
