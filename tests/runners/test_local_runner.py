"""The local runner keeps the rules of all runners."""

from __future__ import annotations

from prouter.testing.runner_conformance import RunnerConformance


class TestLocalRunner(RunnerConformance):
    runner_type = "prouter.runners.local:RUNNER"
