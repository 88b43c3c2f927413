"""Periodic checks of jobs whose sandboxes are on a network file system."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import gevent

from prouter.agent.jobs.ends.watch import Watch
from prouter.runners.capabilities import Capabilities

SLOW = 0.8
"""Seconds that each look at a log takes."""


def _allocated(_name: str) -> int:
    time.sleep(SLOW)
    return 0


def test_a_slow_file_system_delays_nothing_else() -> None:
    runner: Any = SimpleNamespace(capabilities=Capabilities(same_machine=False))
    job: Any = SimpleNamespace(
        uid="j1",
        request=SimpleNamespace(forward_stdout=False),
        limits=SimpleNamespace(sandbox_size=None),
        sandbox=SimpleNamespace(logs=SimpleNamespace(allocated=_allocated)),
    )
    watch = Watch(runner, lambda: [job], log_limit=1, sandbox_full=lambda _job, _size: None)
    longest, last, end = 0.0, time.monotonic(), time.monotonic() + 3
    watch.job_runs()
    watch.job_ended(job)
    while (now := time.monotonic()) < end:
        longest, last = max(longest, now - last), now
        gevent.sleep(0.01)
    watch.close()
    assert longest < SLOW * 0.7
