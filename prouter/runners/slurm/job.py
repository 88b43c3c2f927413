"""One job of the Slurm runner, and the states it can have.

Which state may follow which is the table `NEXT`; `Job.change` is the only way from one to the next::

    HELD ──► SUBMITTING ──► QUEUED ──► RUNNING ──► ENDED
      ▲          │  └─────────┼──────────▲           ▲
      └──────────┴────────────┴──────────────────────┘

* HELD: not started. A start that fails while its caller waits leads back here.
* SUBMITTING: its files are written, and sbatch is asked; Slurm's id is not known. Perhaps Slurm has the job.
* QUEUED: Slurm has the job, and no process of it is known to run.
* RUNNING: its first process was started on a node.
* ENDED: no process of it is left, or will be.

A node may report before sbatch has answered, so RUNNING and ENDED may follow SUBMITTING.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from gevent.event import Event
from gevent.lock import RLock

from prouter.runners.interface import Exit, Queued, Reports, Spawned
from prouter.runners.slurm.node_link import NodeLink

__all__ = ["NEXT", "Job", "JobState"]


class JobState(Enum):
    """Where a job is in its life; see the module's drawing."""

    HELD = "held"
    SUBMITTING = "submitting"
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.HELD: frozenset({JobState.SUBMITTING}),
    JobState.SUBMITTING: frozenset({JobState.HELD, JobState.QUEUED, JobState.RUNNING, JobState.ENDED}),
    JobState.QUEUED: frozenset({JobState.HELD, JobState.SUBMITTING, JobState.RUNNING, JobState.ENDED}),
    JobState.RUNNING: frozenset({JobState.ENDED}),
    JobState.ENDED: frozenset(),
}
"""The states that may follow each state. QUEUED goes back to SUBMITTING when Slurm has lost the job."""


class Job:
    """One job.

    Args:
        directory: the job's, shared with the nodes.

    Attributes:
        state: changed by `change` alone.
        record, sandbox: as of `Kept`.
        secret: of the present start; None before.
        number: Slurm's id, None before it is known.
        reissued: whether another job had that id before.
        past: Slurm's ids of earlier starts.
        submitted_at: when Slurm got it, seconds since the epoch.
        asking, asked_at: whether sbatch is being asked at this moment; when it was the last time (monotonic seconds).
        name: its name in Slurm.
        queued: why it waits, as last heard.
        spawned: its first process, once it runs.
        exit: how it ended.
        failure: why the command could not be started, if that is how it ended.
        suspended: whether Slurm has stopped its processes, so that its node answers nothing.
        link: the connection to its node, if there is one.
        linked: set while there is one.
        news: set whenever something of the above has changed.
        seen_at: when Slurm's queue last had it, or it was submitted (monotonic seconds).
        killed, signalled: whether the agent asked for its end, or sent it a signal.
        ending: what its node told of its end, while Slurm has yet to say why it ended it.
        ending_since: since when Slurm has to say so, or since when it says that a connected job has ended.
        unread_since: since when Slurm says that it has ended, while nothing is read of how (monotonic seconds).
        told: whether the caller of `spawn` has got its answer, so that reports follow.
        reports: those that are to follow, each with the state of its time.
        outbox, sending: reports on their way, in order; whether a greenlet sends them.
        files: serializes writes of its files.
    """

    def __init__(self, uid: str, directory: Path, record: dict[str, Any], sandbox: str | None) -> None:
        self.uid = uid
        self.directory = directory
        self.record = record
        self.sandbox = sandbox
        self.state = JobState.HELD
        self.secret: str | None = None
        self.number: int | None = None
        self.reissued = False
        self.past: set[int] = set()
        self.submitted_at = 0.0
        self.asking = False
        self.asked_at = 0.0
        self.name = ""
        self.queued = Queued(uid)
        self.spawned: Spawned | None = None
        self.exit: Exit | None = None
        self.failure: str | None = None
        self.suspended = False
        self.link: NodeLink | None = None
        self.linked = Event()
        self.news = Event()
        self.seen_at = time.monotonic()
        self.killed = False
        self.signalled = False
        self.ending: dict[str, Any] | None = None
        self.ending_since: float | None = None
        self.unread_since: float | None = None
        self.told = False
        self.files = RLock()
        self.reports: list[tuple[JobState, Callable[[Reports], None]]] = []
        self.outbox: list[Callable[[Reports], None]] = []
        self.sending = False

    def change(self, state: JobState) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        if state not in NEXT[self.state]:
            raise RuntimeError(f"job {self.uid} cannot go from {self.state.value} to {state.value}")
        self.state = state
        self.news.set()

    def moment(self, told: float) -> float:
        """A time that a node, whose clock may be wrong, tells: not before the submission or the start, nor to come."""
        earliest = self.spawned.started_at if self.spawned is not None else self.submitted_at
        return max(earliest, min(told, time.time()))

    @property
    def explaining(self) -> bool:
        """Whether Slurm has yet to say why it has ended."""
        return self.ending is not None and self.exit is None

    @property
    def waiting(self) -> bool:
        """Whether its start is under way."""
        return self.state in (JobState.SUBMITTING, JobState.QUEUED)
