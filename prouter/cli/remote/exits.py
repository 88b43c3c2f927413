"""Exit codes of the commands that use a router (docs/cli.md, "Exit codes")."""

from __future__ import annotations

import signal
from enum import IntEnum

from prouter.client import Outcome

__all__ = ["Exit", "of_job", "signal_number"]


class Exit(IntEnum):
    """Why a command failed."""

    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5
    BUSY = 6
    TIMED_OUT = 124
    """What `timeout(1)` exits with: the job's time limit, or that of `prouter wait`, is over."""
    NOT_THE_JOB = 125
    """`run` and `wait`: the router or this command failed; other codes are the job's."""
    BROKEN_PIPE = 128 + signal.SIGPIPE


def of_job(outcome: Outcome) -> int:
    """Return the exit code that tells how a job ended: its own, or 128 and the number of the signal that ended it."""
    if outcome.reason == "timeout":
        return Exit.TIMED_OUT
    if outcome.exit_code is not None:
        return outcome.exit_code
    number = signal_number(outcome.signal) if outcome.signal else None
    return Exit.NOT_THE_JOB if number is None else 128 + number


def signal_number(name: str) -> int | None:
    """Return the number of a signal such as ``SIGTERM`` or ``SIGRTMIN+3``; None if there is none of that name."""
    base, plus, offset = name.partition("+")
    try:
        return signal.Signals[base].value + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        return None
