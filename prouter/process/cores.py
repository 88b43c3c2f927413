"""Protection of what a process has in memory, such as tokens and requests, from core dumps and from other processes.

Standard library only: used by the keeper.
"""

from __future__ import annotations

import ctypes
import resource

__all__ = ["forbid_core_dumps", "forbid_inspection"]

_PR_SET_DUMPABLE = 4

_NONE = 1
"""Bytes. Below a page no file is written; and only 1, not 0, also stops dumps that go to a program (core(5))."""


def forbid_core_dumps() -> None:
    """Let this process, and those that it starts, dump no core. ``prlimit --core=unlimited --pid PID`` undoes it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = _NONE if hard == resource.RLIM_INFINITY else min(_NONE, hard)
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_CORE, (wanted, hard))


def forbid_inspection() -> None:
    """Let no other process of this user trace this one, nor read its memory, environment or descriptors in /proc.

    Forked children inherit this, programs that they execute do not. Root may go on. See PR_SET_DUMPABLE in
    prctl(2).
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
