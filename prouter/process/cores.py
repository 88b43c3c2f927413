"""Core dumps, which would hold the tokens and requests that a process has in memory."""

from __future__ import annotations

import resource

__all__ = ["forbid_core_dumps"]

_NONE = 1
"""Bytes. Below a page no file is written; and only 1, not 0, also stops dumps that go to a program (core(5))."""


def forbid_core_dumps() -> None:
    """Let this process, and those that it starts, dump no core. ``prlimit --core=unlimited --pid PID`` undoes it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = _NONE if hard == resource.RLIM_INFINITY else min(_NONE, hard)
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_CORE, (wanted, hard))
