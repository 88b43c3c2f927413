"""Limits of a job, enforced without control groups: resource limits in the child, and checks of the process tree.

Standard library only: used by the keeper. `open_files` is a resource limit (getrlimit(2)). Memory, CPU time and the
number of processes are limits of the whole tree, which resource limits cannot express, so the keeper checks
trees with such a limit every `interval` seconds, and kills a tree that exceeds it.
"""

from __future__ import annotations

import math
import os
import resource
from typing import NamedTuple

from prouter.processes.process_tree import mark_value

__all__ = ["FIRST_LOOK", "Limits", "Sample", "apply", "breach", "interval", "is_backstop"]

FIRST_LOOK = 0.1
"""Seconds from the start of a tree with limits to its first check."""

_CALM = 0.5
_CLOSE = 0.1
_CORES = os.cpu_count() or 1


class Limits(NamedTuple):
    """Limits of one job; None means none.

    Attributes:
        memory: bytes of resident memory of the whole tree, shared pages counted once.
        cpu_seconds: of the whole tree, ended processes included.
        open_files: descriptors of each process.
        processes: living processes (and zombies) of the tree.
    """

    memory: int | None = None
    cpu_seconds: float | None = None
    open_files: int | None = None
    processes: int | None = None

    @property
    def watched(self) -> bool:
        """Whether the tree must be checked from time to time."""
        return self.memory is not None or self.cpu_seconds is not None or self.processes is not None


class Sample(NamedTuple):
    """What a tree uses at one moment: CPU seconds so far, bytes of resident memory, number of processes."""

    cpu_seconds: float
    rss_bytes: int
    processes: int


def breach(limits: Limits, sample: Sample) -> str | None:
    """The limit that a sample exceeds: ``memory``, ``cpu`` or ``processes``; None if it exceeds none."""
    if limits.memory is not None and sample.rss_bytes > limits.memory:
        return "memory"
    if limits.cpu_seconds is not None and sample.cpu_seconds >= limits.cpu_seconds:
        return "cpu"
    if limits.processes is not None and sample.processes > limits.processes:
        return "processes"
    return None


def interval(limits: Limits, sample: Sample) -> float:
    """Seconds until the next check: few once a tree uses more than half of a limit."""
    close = (
        (limits.memory is not None and sample.rss_bytes * 2 > limits.memory)
        or (limits.processes is not None and sample.processes * 2 > limits.processes)
        or (limits.cpu_seconds is not None and sample.cpu_seconds + _CORES * _CALM > limits.cpu_seconds)
    )
    return _CLOSE if close else _CALM


def apply(limits: Limits, job: str) -> None:
    """Set the calling process's resource limits, and its mark as a process of this job.

    The limit of CPU seconds is a backstop: it holds for each process alone, but also between two checks.

    Raises:
        OSError, ValueError: the system refuses. A limit above the hard limit is no error; the hard limit then holds.
    """
    mark = mark_value(job)
    hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    if hard == resource.RLIM_INFINITY or hard >= mark:
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))
    if limits.open_files is not None:
        _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.cpu_seconds is not None:
        _lower(resource.RLIMIT_CPU, _backstop(limits.cpu_seconds))


def is_backstop(limits: Limits, cpu_seconds: float) -> bool:
    """Whether the backstop of `apply` may have killed a process that used this much CPU time."""
    # For RLIMIT_CPU the kernel counts in clock ticks, for wait4(2) more exactly.
    return limits.cpu_seconds is not None and cpu_seconds >= _backstop(limits.cpu_seconds) - _CLOSE


def _backstop(cpu_seconds: float) -> int:
    """RLIMIT_CPU in whole seconds: later than the check that finds the limit exceeded."""
    return math.ceil(cpu_seconds) + 1


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (ceiling, ceiling))
