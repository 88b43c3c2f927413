"""File descriptors: processes that hold many connections use as many as they are allowed."""

from __future__ import annotations

import resource

__all__ = ["raise_descriptor_limit"]

_ENDLESS = 1 << 30


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as the system permits, mostly 500 times the usual 1024; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _ENDLESS if hard == resource.RLIM_INFINITY else hard
