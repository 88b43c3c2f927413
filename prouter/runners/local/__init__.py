"""The runner for the agent's own machine, which every agent has unless its configuration names another."""

from prouter.runners.kinds import RunnerType
from prouter.runners.local.runner import LocalRunner

__all__ = ["RUNNER"]

RUNNER = RunnerType(LocalRunner)
