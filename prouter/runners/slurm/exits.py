"""How a job ended, from what its node wrote, what Slurm says, or both."""

from __future__ import annotations

import signal
import time
from typing import Any

from prouter.runners.interface import Exit
from prouter.runners.slurm.states import end_reason

__all__ = ["made_by_node", "made_by_slurm", "needs_explanation", "never_ran"]

_DEADLY = ("SIGTERM", "SIGKILL")
"""Signals by which Slurm, or the kernel for lack of memory, ends a job."""
_DEADLY_CODES = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""Exit codes of shells whose command such a signal has ended. They may exit before the node's program gets its own."""
_TEXTS = {
    "walltime": "Slurm ended it, because its time was up",
    "memory": "Slurm ended it, because it used more memory than it had asked for",
    "node_failed": "its node failed",
    "preempted": "Slurm ended it in favour of another job",
    "cancelled": "it was cancelled in Slurm",
}


def needs_explanation(told: dict[str, Any], *, killed: bool, signalled: bool) -> bool:
    """Whether only Slurm can say why a job has ended.

    Args:
        told: what the node wrote.
        killed: whether the agent itself asked for the end.
        signalled: whether the agent sent it such a signal.
    """
    if told["reason"] is not None or killed:
        return False
    deadly = told["signal"] in _DEADLY or told["exit_code"] in _DEADLY_CODES
    return bool(told["asked_to_end"]) or (deadly and not signalled)


def made_by_node(job: str, told: dict[str, Any], slurm: tuple[str, str | None] | None, log: str) -> Exit:
    """The exit of a job whose node has written how it ended.

    Args:
        slurm: Slurm's state and reason, if they are needed and known.
        log: the end of what the batch script and Slurm wrote.
    """
    reason = told["reason"]
    if reason is None and slurm is not None:
        reason = end_reason(*slurm, log)
    return Exit(
        job,
        exit_code=told["exit_code"],
        signal=told["signal"],
        reason=reason,
        cpu_seconds=told["cpu_seconds"],
        max_rss=told["max_rss"],
        at=told["at"],
        node=told["node"],
        text=told.get("text") or _TEXTS.get(reason or "", ""),
    )


def made_by_slurm(job: str, node: str | None, slurm: tuple[str, str | None], log: str, *, ran: bool) -> Exit:
    """The exit of a job whose node has written nothing, because it was killed or never started the job.

    Args:
        node: where it was, as far as that is known.
        ran: whether the job's process was started.
    """
    state, why = slurm
    reason = end_reason(state, why, log) or ("agent_lost" if ran else "start_failed")
    text = _TEXTS.get(reason)
    if text is None:
        what = "the process that ran it on its node was lost" if ran else "its batch script could not start it"
        said = f"{state} ({why})" if why else state
        text = f"{what}; Slurm says: {said}{f'; its output ends with: {log}' if log else ''}"
    return Exit(job, None, None, reason, 0.0, 0, time.time(), node, text)


def never_ran(job: str, reason: str | None, text: str = "") -> Exit:
    """The exit of a job that was not started, and never will be."""
    return Exit(job, None, None, reason, 0.0, 0, time.time(), None, text)
