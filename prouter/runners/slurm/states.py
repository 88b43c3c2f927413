"""Slurm's job states (squeue(1), "JOB STATE CODES") in the agent's terms."""

from __future__ import annotations

from enum import Enum

__all__ = ["Phase", "end_reason", "phase", "suspended"]


class Phase(Enum):
    """What a state of Slurm means for a job of ours.

    * QUEUED: no process of it runs.
    * RUNNING: it has a node, and its processes run, are about to run, or are suspended.
    * ENDING: Slurm waits for the end of its processes.
    * ENDED: over.
    """

    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


_PHASES = {
    "PENDING": Phase.QUEUED,
    "REQUEUED": Phase.QUEUED,
    "REQUEUE_HOLD": Phase.QUEUED,
    "REQUEUE_FED": Phase.QUEUED,
    "SPECIAL_EXIT": Phase.QUEUED,
    "RESV_DEL_HOLD": Phase.QUEUED,
    "CONFIGURING": Phase.RUNNING,
    "RUNNING": Phase.RUNNING,
    "RESIZING": Phase.RUNNING,
    "SIGNALING": Phase.RUNNING,
    "STAGE_OUT": Phase.RUNNING,
    "STOPPED": Phase.RUNNING,
    "SUSPENDED": Phase.RUNNING,
    "COMPLETING": Phase.ENDING,
    "BOOT_FAIL": Phase.ENDED,
    "CANCELLED": Phase.ENDED,
    "COMPLETED": Phase.ENDED,
    "DEADLINE": Phase.ENDED,
    "FAILED": Phase.ENDED,
    "NODE_FAIL": Phase.ENDED,
    "OUT_OF_MEMORY": Phase.ENDED,
    "PREEMPTED": Phase.ENDED,
    "REVOKED": Phase.ENDED,
    "TIMEOUT": Phase.ENDED,
}

_REASONS = {
    "TIMEOUT": "walltime",
    "DEADLINE": "walltime",
    "OUT_OF_MEMORY": "memory",
    "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}
"""State to the reason of an end (`Exit.reason`). All other ends are told by exit code or signal."""

_MEMORY_MESSAGE = "exceeded memory limit"
"""What slurmstepd writes to the script's output when it kills a job for its memory (JobAcctGatherParams)."""


def phase(state: str) -> Phase:
    """The phase for a state in Slurm's words. A state of a later Slurm counts as running: nobody acts on that."""
    return _PHASES.get(state.partition(" ")[0].rstrip("+"), Phase.RUNNING)


def suspended(state: str) -> bool:
    """Whether the processes of a job in this state are stopped: by an administrator, or for a job that preempts it."""
    return state.partition(" ")[0].rstrip("+") in ("SUSPENDED", "STOPPED")


def end_reason(state: str, reason: str | None, script_output: str = "") -> str | None:
    """Why Slurm ended a job; None if it ended by itself.

    Args:
        state: a state whose phase is ENDED.
        reason: Slurm's, such as ``NodeDown``.
        script_output: the end of what the batch script and slurmstepd wrote.
    """
    name = state.partition(" ")[0].rstrip("+")
    if name in _REASONS:
        return _REASONS[name]
    if reason == "NodeDown":
        return "node_failed"
    if name == "FAILED" and _MEMORY_MESSAGE in script_output:
        return "memory"
    return None
