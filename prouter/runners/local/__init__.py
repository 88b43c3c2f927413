"""The runner for the agent's own machine, which every agent has unless its configuration names another."""

from prouter.runners.kinds import RunnerType
from prouter.runners.local.runner import LocalRunner
from prouter.runners.local.same_machine import SameMachine

__all__ = ["RUNNER", "SameMachine"]

RUNNER = RunnerType(LocalRunner)
