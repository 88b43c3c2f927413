"""The kind of runner that the entry point names. The runner itself is imported only by agents that use it."""

from __future__ import annotations

from prouter.runners.interface import Runner
from prouter.runners.kinds import RunnerType, Setup
from prouter.runners.slurm.options import SlurmOptions

__all__ = ["RUNNER"]


def _make(setup: Setup) -> Runner:
    from prouter.runners.slurm.runner import SlurmRunner

    return SlurmRunner(setup)


RUNNER = RunnerType(_make, SlurmOptions)
