"""A small runner of another package keeps the rules, with a queue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prouter.testing.runner_conformance import Bench, RunnerConformance

SLOTS = 4


class TestGuardedRunner(RunnerConformance):
    runner_type = "tests.runners.guarded:RUNNER"
    options = {"slots": SLOTS}

    @contextlib.contextmanager
    def full(self, bench: Bench) -> Iterator[None]:
        jobs = [bench.start(bench.spec("sleep", "600")).job for _ in range(SLOTS)]
        yield
        for job in jobs:
            bench.runner.kill(job)
