"""What Slurm's queue says about all jobs together: one command for each look, however many jobs there are.

Looks are frequent while something is expected, and rare while all jobs run: their nodes tell by themselves what
happens. A controller that does not answer delays nothing but the next look.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

import gevent
from gevent.event import Event

from prouter.errors import AgentUnavailable
from prouter.runners.slurm import commands
from prouter.runners.slurm.commands import QueueEntry
from prouter.runners.slurm.controller import Controller
from prouter.runners.slurm.job import Job, JobState
from prouter.runners.slurm.states import Phase, phase

__all__ = ["Follower"]

_SOON = 0.1
"""Seconds until the next look when something has just happened; it grows by `_GROWTH` with every look."""
_GROWTH = 1.6
_PENDING = 2.0
"""Most seconds between looks while a start waits, or an end is not explained yet."""
_AWAY = 5.0
"""Seconds between looks while the controller does not answer, beside the many that it takes to say so."""

_log = logging.getLogger("prouter.runner")


class Follower:
    """Looks at the queue.

    Args:
        agent: the tag of this agent's jobs (`commands.tag`).
        poll: most seconds between looks while a job runs.
        jobs: all jobs.
        observe: called for each job that is not held and has not ended, with its entry in the queue, or None, and the
            time at which the look began (monotonic).
        stray: called for each entry that waits in the queue and belongs to none of those.
    """

    def __init__(
        self,
        controller: Controller,
        agent: str,
        poll: float,
        jobs: Callable[[], Iterable[Job]],
        observe: Callable[[Job, QueueEntry | None, float], None],
        stray: Callable[[QueueEntry], None],
    ) -> None:
        self._controller = controller
        self._agent = agent
        self._poll = poll
        self._jobs = jobs
        self._observe = observe
        self._stray = stray
        self._wanted = Event()
        self._pause = _SOON
        self._away = False
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._greenlet = gevent.spawn(self._run)

    def soon(self) -> None:
        """Look soon: something has changed, or is about to."""
        self._pause = _SOON
        self._wanted.set()

    def close(self) -> None:
        """Look no more."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        self._look(self._followed())
        while True:
            pause = self._next()
            # A wish for a look waits for the end of the pause, so that many wishes make one look.
            if pause is None or pause > self._pause:
                self._wanted.wait(pause)
            self._wanted.clear()
            gevent.sleep(min(self._pause, pause) if pause is not None else self._pause)
            self._pause = min(self._pause * _GROWTH, _PENDING)
            jobs = self._followed()
            if jobs:
                self._look(jobs)

    def _followed(self) -> list[Job]:
        return [job for job in self._jobs() if job.state not in (JobState.HELD, JobState.ENDED)]

    def _next(self) -> float | None:
        """Seconds until the next look; None if nothing is to be seen."""
        jobs = self._followed()
        if not jobs:
            return None
        if self._away:
            return _AWAY
        # A running job without a connection may have ended without anybody's telling so.
        expected = any(job.waiting or job.explaining or job.link is None for job in jobs)
        return self._pause if expected else self._poll

    def _look(self, jobs: list[Job]) -> None:
        began = time.monotonic()
        try:
            outcome = self._controller.look(commands.queue(str(os.geteuid())))
            if outcome.code:
                raise AgentUnavailable(f"squeue failed: {commands.refusal(outcome.stderr)}")
        except AgentUnavailable as error:
            if not self._away:
                _log.warning("event=slurm_away error=%r", error.detail)
            self._away = True
            return
        if self._away:
            _log.info("event=slurm_back")
        self._away = False
        entries: dict[str, list[QueueEntry]] = {}
        for entry in commands.parse_queue(outcome.stdout, self._agent):
            entries.setdefault(entry.job, []).append(entry)
        followed = {job.uid for job in self._followed()}
        for entry in (entry for uid in entries.keys() - followed for entry in entries[uid]):
            if phase(entry.state) is Phase.QUEUED:
                self._stray(entry)
        for job in jobs:
            try:
                self._observe(job, _entry_of(job, entries.get(job.uid, [])), began)
            except Exception:
                _log.exception("event=job_not_observed job=%s", job.uid)


def _entry_of(job: Job, entries: list[QueueEntry]) -> QueueEntry | None:
    """The entry of the job's present start. One that was submitted before has another number."""
    if job.number is not None:
        return next((entry for entry in entries if entry.number == job.number), None)
    unknown = [entry for entry in entries if entry.number not in job.past]
    return max(unknown, key=lambda entry: entry.number, default=None)
