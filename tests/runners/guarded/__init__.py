"""A small runner as another package would add it (docs/runners.md): jobs have guard processes, and wait for free slots.

`guard.py` is the process, `runner.py` the agent's end. Both speak through files in a directory for each job. It has no
users, limits and death notices, and jobs outlive the agent either not at all or for ever.
"""

from prouter.runners import RunnerType
from tests.runners.guarded.runner import GuardedOptions, GuardedRunner

__all__ = ["RUNNER"]

RUNNER = RunnerType(GuardedRunner, GuardedOptions)
