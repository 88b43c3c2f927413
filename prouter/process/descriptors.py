"""Limit of file descriptors, for processes that hold many connections."""

from __future__ import annotations

import resource

__all__ = ["raise_descriptor_limit"]

_UNLIMITED = 1 << 30
"""Returned where the system sets no limit."""


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as the system permits; return how many.

    The usual soft limit is 1024, and the hard one mostly 500 times that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _UNLIMITED if hard == resource.RLIM_INFINITY else hard
