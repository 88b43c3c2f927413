"""One job in the keeper's table: its state, its processes as far as the keeper knows them, and how it ended.

Which state may follow which is the table `NEXT`; `Job.change` is the only way from one to the next::

    HELD ──► STARTING ──► RUNNING ──► ENDING ──► ENDED
     │          └───────────────────────▲          ▲
     └─────────────────────────────────────────────┘

* HELD: the keeper knows the job, which has no process. The agent has created it and not started it. A job that ended
  under an earlier keeper goes from HELD to ENDED at once: only its exit status is kept, for the agent.
* STARTING: the first process is forked; whether it can execute the job's command is not known yet.
* RUNNING: the command runs.
* ENDING: somebody asked for the end, a limit was exceeded, or the first process ended by itself. The rest of the tree
  is being killed. A command that could not be executed comes here from STARTING.
* ENDED: no process of the tree is left, and `Job.exit` says how the first one ended.

A job never goes back. When the start of a held job fails, another `Job` in the state HELD takes its place.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from prouter.keeper.cgroups import Group
from prouter.processes.limits import Limits
from prouter.processes.process_tree import mark_value
from prouter.processes.users import User

__all__ = ["FIRST_RETRY", "NEXT", "WITHOUT_PROCESSES", "WITH_PROCESSES", "Job", "JobState"]

FIRST_RETRY = 0.02
"""Seconds until the keeper looks again at a tree that it has just killed."""


class JobState(Enum):
    """Where a job is in its life; see the module's drawing."""

    HELD = "held"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.HELD: frozenset({JobState.STARTING, JobState.ENDED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.ENDING}),
    JobState.RUNNING: frozenset({JobState.ENDING}),
    JobState.ENDING: frozenset({JobState.ENDED}),
    JobState.ENDED: frozenset(),
}
"""The states that may follow each state."""

WITH_PROCESSES = frozenset({JobState.STARTING, JobState.RUNNING})
"""States in which signals reach the job, and in which it can be asked to end."""
WITHOUT_PROCESSES = frozenset({JobState.HELD, JobState.ENDED})
"""States in which the agent may drop the job."""


class Job:
    """One job.

    Attributes:
        state: changed by `change` alone.
        mark: what marks the limits of the job's processes (`prouter.processes.process_tree.mark_value`).
        record: what the agent wants to know again after a restart; the keeper does not look into it.
        sandbox: the directory to remove when the job goes with its agent, or None.
        group: the job's control group, if it has one.
        user: whom the job runs as, if that is not the keeper's own user.
        pid: of the first process.
        start: its start time, in clock ticks since the machine booted.
        started_at: the same in seconds since the epoch.
        outcome: exit code or name of the signal of the first process, once it has ended.
        ended_at: when the first process ended, seconds since the epoch.
        was_told_to_end: whether the tree was ending before its first process had ended.
        reason: the limit that was exceeded, or None.
        exit: how the job ended, as the agent is told.
        orphans_cpu, orphans_rss: CPU seconds and peak bytes of processes that outlived their parent and were reaped.
        seen: processes (pid, start time) of the tree at the last look.
        dying: processes that were killed and are not known to be gone.
        dying_since: when the end began, or was last complained about (monotonic seconds).
        retry: seconds until the next look at an ending tree.
        act_at: when to look again (monotonic seconds): at what a watched tree uses, or whether an ending one is gone.
    """

    def __init__(self, uid: str, record: dict[str, Any], sandbox: str | None) -> None:
        self.uid = uid
        self.mark = mark_value(uid)
        self.record = record
        self.sandbox = sandbox
        self.state = JobState.HELD
        self.limits = Limits()
        self.group: Group | None = None
        self.user: User | None = None
        self.pid = 0
        self.start = 0
        self.started_at = 0.0
        self.outcome: tuple[int | None, str | None] = (None, None)
        self.ended_at = 0.0
        self.was_told_to_end = False
        self.reason: str | None = None
        self.exit: dict[str, Any] | None = None
        self.orphans_cpu = 0.0
        self.orphans_rss = 0
        self.seen: set[tuple[int, int]] = set()
        self.dying: set[tuple[int, int]] = set()
        self.dying_since = 0.0
        self.retry = FIRST_RETRY
        self.act_at = 0.0

    def change(self, state: JobState) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        if state not in NEXT[self.state]:
            raise RuntimeError(f"job {self.uid} cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def ending(self) -> bool:
        """Whether what is left of its tree is being killed."""
        return self.state is JobState.ENDING

    @property
    def watched(self) -> Limits:
        """The limits that the keeper itself has to enforce, because no control group does."""
        held = self.group is not None and self.group.holds_memory
        return self.limits._replace(memory=None) if held else self.limits
