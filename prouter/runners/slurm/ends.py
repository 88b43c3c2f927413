"""Ends of jobs: why they ended, and how the agent ends them, waiting or running, connected or not."""

from __future__ import annotations

import logging
import time
from typing import Any

import gevent

from prouter.errors import AgentUnavailable, PRouterError
from prouter.jobs import Reason
from prouter.runners.interface import Queued, Spawned
from prouter.runners.slurm import commands
from prouter.runners.slurm.commands import QueueEntry
from prouter.runners.slurm.controller import Controller
from prouter.runners.slurm.exits import made_by_node, made_by_slurm, needs_explanation, never_ran
from prouter.runners.slurm.follower import Follower
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.starts import Starts
from prouter.runners.slurm.states import Phase, phase, suspended
from prouter.runners.slurm.table import Table

__all__ = ["Ends"]

_MISSED = 5.0
"""Seconds for which a job may be missing in the queue: a controller that has just started may not know all."""
_RECENT = 120.0
"""Seconds after its submission for which a missing job was lost by a killed controller, not cancelled and purged."""
_SUBMISSIONS = 3
"""Most submissions of one start: a node program that dies at once, again and again, is no accident."""
_EXPLAINED_BY = 60.0
"""Seconds that Slurm has to say why it has ended a job."""
_WRITTEN = 5.0
"""Seconds that a file may take to be seen here, in which a node has written how the job ended."""
_LINKED = 3.0
"""Seconds for which a connected node may not know that Slurm has ended the job."""
_RECONNECTED = 6.0
"""Seconds that a node has to connect, before Slurm is asked to end its job."""
_ANSWERED = 10.0
"""Seconds that a connected node has to end its job, before Slurm is asked to."""
_KILLED_BY = 60.0
"""Seconds that the end of a job may take."""
_REQUEUED = "Slurm ended it and put it back into its queue; no job is started twice"
_LOST = "Slurm does not know the job any more: it was cancelled, or its controller has lost it"

_log = logging.getLogger("prouter.runner")


class Ends:
    """Ends jobs, and finds out how they ended.

    Args:
        agent: the tag of this agent's jobs (`commands.tag`).
    """

    def __init__(self, table: Table, controller: Controller, follower: Follower, starts: Starts, agent: str) -> None:
        self._table = table
        self._controller = controller
        self._follower = follower
        self._starts = starts
        self._agent = agent

    # What nodes and Slurm say.

    def told_by_node(self, job: Job, told: dict[str, Any]) -> None:
        """A node says how the job ended, or has written it."""
        if job.exit is not None or job.ending is not None:
            return
        self._note_running(job)
        if needs_explanation(told, killed=job.killed, signalled=job.signalled):
            job.ending, job.ending_since = told, time.monotonic()
            self._follower.soon()
        else:
            self._finish(job, told, None)
        if job.link is not None:
            job.link.close()

    def observe(self, job: Job, entry: QueueEntry | None, looked_at: float) -> None:
        """Slurm's queue has this about a job that has not ended; None if it has nothing."""
        if entry is None:
            self._missing(job, looked_at)
            return
        job.seen_at = time.monotonic()
        if job.number is None and not job.asking:
            self._starts.submitted(job, entry.number)
        now = phase(entry.state)
        job.suspended = suspended(entry.state)
        if now is Phase.QUEUED and job.ending is not None:
            self._requeued(job, job.ending, entry)
        elif now is Phase.QUEUED:
            self._table.queued(job, Queued(job.uid, entry.reason or "", entry.expected_start))
        elif now is Phase.ENDED:
            self._ended(job, entry)
        elif job.link is None:
            self._read(job)
        if job.ending is not None and now is not Phase.ENDED:
            self._explain_late(job)

    def _requeued(self, job: Job, told: dict[str, Any], entry: QueueEntry) -> None:
        """Slurm has ended a job to run it again, which somebody has permitted after its submission."""
        self._finish(job, {**told, "reason": "cancelled", "text": _REQUEUED}, None)
        gevent.spawn(self._cancel_once, entry.number, entry.name)

    def _explain_late(self, job: Job) -> None:
        if job.ending is not None and time.monotonic() - (job.ending_since or 0.0) > _EXPLAINED_BY:
            self._finish(job, job.ending, None)

    def _read(self, job: Job) -> None:
        """Read what the node of a job has written; it may not reach the agent."""
        told = self._table.read(job, job_files.EXIT)
        if told is not None:
            self.told_by_node(job, told)
        else:
            self._note_running(job)

    def _note_running(self, job: Job) -> None:
        """Note that a job ran, or runs: its node may not have told before it told the end."""
        spawned = self._table.read(job, job_files.SPAWNED) if job.waiting else None
        if spawned is not None:
            self._table.running(job, Spawned(job.uid, **spawned))

    def _ended(self, job: Job, entry: QueueEntry) -> None:
        """Slurm says that a job is over."""
        if job.link is not None:
            self._ended_but_linked(job)
            return
        slurm = (entry.state, entry.reason)
        self._read(job)
        told = job.ending
        if job.exit is not None:
            return
        if told is not None:
            self._finish(job, told, slurm)
            return
        claim = self._table.read(job, job_files.CLAIM)
        if self._given_to_another(job, claim):
            return  # This batch job has found the other one's claim, and ended.
        ran = job.spawned is not None
        claimed = claim if not ran else None
        if not ran and claimed is None and entry.state.startswith("CANCELLED"):
            if job.reissued and len(job.past) < _SUBMISSIONS - 1:
                # A killed controller has given out the id again, and took the end of the earlier job for this one's.
                self._starts.again(job)
                return
            self._table.ended(job, never_ran(job.uid, "cancelled", "it was cancelled in Slurm before it ran"))
            return
        cancelled = entry.state.startswith("CANCELLED") and not job.reissued
        if claimed is not None and not cancelled and self._submitted_again(job):
            return
        log = self._table.files(job_files.tail, str(job.directory))
        end = made_by_slurm(job.uid, entry.node, slurm, log, ran=ran)
        if end.reason == Reason.AGENT_LOST.value and self._may_be_written(job):
            return
        self._table.ended(job, end)

    def _may_be_written(self, job: Job) -> bool:
        """Whether a later look may find how a job ended: file systems show a new file late to other machines."""
        now = time.monotonic()
        if job.unread_since is None:
            job.unread_since = now
        self._follower.soon()
        return now - job.unread_since < _WRITTEN

    def _ended_but_linked(self, job: Job) -> None:
        """Slurm has given up a node that still runs the job, or the node is about to tell the end."""
        now = time.monotonic()
        if job.ending_since is None:
            job.ending_since = now
            self._follower.soon()
        elif now - job.ending_since > _LINKED and job.link is not None:
            _log.warning("event=ended_by_slurm job=%s node=%s", job.uid, job.link.node)
            job.link.notify("kill")
            job.link.close()
            self._follower.soon()

    def _given_to_another(self, job: Job, claim: dict[str, Any] | None) -> bool:
        """Whether another batch job has the job than the one that was thought to; note that."""
        number = str(claim.get("number")) if claim is not None and claim.get(job_files.NODE) else ""
        if not number.isdigit() or int(number) == job.number:
            return False
        self._starts.runs_as(job, int(number))
        self._follower.soon()
        return True

    def stray(self, entry: QueueEntry) -> None:
        """Slurm's queue has a job of ours that has ended or was removed: sbatch had not answered, or scancel failed."""
        job = self._table.get(entry.job)
        if job is None or (job.state in (JobState.HELD, JobState.ENDED) and not job.asking):
            _log.info("event=stray_cancelled job=%s number=%d", entry.job, entry.number)
            gevent.spawn(self._cancel_once, entry.number, entry.name)

    def _missing(self, job: Job, looked_at: float) -> None:
        """Slurm has nothing about a job."""
        if job.asking or looked_at < max(job.asked_at, job.seen_at):
            return
        self._read(job)
        if job.exit is not None:
            return
        if job.ending is not None:
            self._finish(job, job.ending, None)
        elif self._given_to_another(job, self._table.read(job, job_files.CLAIM)):
            return  # A later look has it.
        elif job.number is None and job.waiting:
            self._starts.again(job)  # A look that began after sbatch had failed has not found it.
        elif job.link is not None or time.monotonic() - job.seen_at < _MISSED:
            return  # The node will tell; or a later look has it.
        elif job.spawned is not None:
            text = f"{_LOST}; the process that ran it has left no exit status"
            self._table.ended(job, made_by_slurm(job.uid, job.spawned.node, ("UNKNOWN", text), "", ran=True))
        elif time.time() - job.submitted_at < _RECENT and self._table.read(job, job_files.CLAIM) is None:
            self._starts.again(job)
        elif not self._submitted_again(job):
            self._table.ended(job, never_ran(job.uid, "cancelled", _LOST))

    def _submitted_again(self, job: Job) -> bool:
        """Submit a job again whose node was lost before it had started the job; return whether that was so.

        A controller that was killed has its nodes kill what it does not know, and that may be a job that just begins.
        """
        if (
            job.killed
            or len(job.past) >= _SUBMISSIONS - 1
            or not self._table.files(job_files.give_up, str(job.directory))
        ):
            return False
        self._starts.again(job)
        return True

    def _finish(self, job: Job, told: dict[str, Any], slurm: tuple[str, str | None] | None) -> None:
        log = self._table.files(job_files.tail, str(job.directory)) if slurm is not None else ""
        self._table.ended(job, made_by_node(job.uid, told, slurm, log))

    # What the agent wants.

    def kill(self, job: Job) -> None:
        """End a job; see `Runner.kill`."""
        job.killed = True
        if job.waiting and self._starts.take_back(job):
            self._table.ended(job, never_ran(job.uid, "cancelled", "it was ended before it ran"))
            gevent.spawn(self._cancel, job)
            return
        if job.state is JobState.RUNNING and job.ending is None:
            job.linked.wait(_RECONNECTED)  # After a restart of the agent, its node is about to connect.
        deadline = time.monotonic() + _KILLED_BY
        while job.state not in (JobState.HELD, JobState.ENDED):
            if time.monotonic() > deadline:
                raise AgentUnavailable(
                    f"job '{job.uid}' was told to end, but Slurm has not confirmed its end within {_KILLED_BY:g} s",
                    job=job.uid,
                    retry_after=5.0,
                )
            job.news.clear()
            self._press(job)
            job.news.wait(1.0)

    def _press(self, job: Job) -> None:
        """Ask for the end of a job by the best way there is."""
        link = job.link
        if link is not None and not job.suspended:
            try:
                link.request("kill", timeout=_ANSWERED)
                job.news.wait(1.0)
                return
            except PRouterError as error:
                _log.info("event=not_killed_by_node job=%s error=%r", job.uid, error.detail)
        if job.ending is not None:
            self._finish(job, job.ending, None)
        elif job.number is not None and job.state is not JobState.ENDED:
            self._cancel_once(job.number, job.name)
            self._follower.soon()

    def _cancel(self, job: Job) -> None:
        """Take a job that never ran out of Slurm's queue. If the agent ends before that, its claim has to do."""
        while True:
            while job.asking:
                gevent.sleep(0.05)
            if job.number is None or self._cancel_once(job.number, job.name):
                return
            gevent.sleep(5.0)

    def _cancel_once(self, number: int, name: str) -> bool:
        try:
            outcome = self._controller.change(commands.cancel(number, name))
        except AgentUnavailable as error:
            _log.info("event=not_cancelled number=%d error=%r", number, error.detail)
            return False
        if outcome.code:
            _log.warning("event=not_cancelled number=%d error=%r", number, commands.refusal(outcome.stderr))
        return True
