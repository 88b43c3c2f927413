"""Kinds of runners: what an entry point of the group ``prouter.runners`` names, and how an agent makes its runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prouter.config.section import Section
from prouter.runners.interface import Runner

__all__ = ["Options", "RunnerType", "Setup"]


class Options(Section):
    """Options of a runner in the agent's configuration, ``jobs.NAME.*``; this one has none.

    Every field of a subclass has a default, and a description for lists of all keys; its docstring says what they are.
    """


@dataclass(frozen=True)
class Setup:
    """What a runner gets when it is made.

    Attributes:
        state_dir: directory of this runner alone on the agent's machine; the runner makes it.
        jobs_root: directory of the sandboxes.
        keep_for: seconds for which jobs outlive the agent (``jobs.keep_for``). With 0 they end with it, also if it is
            killed.
        cgroup: the setting ``jobs.cgroup``.
        options: the settings ``jobs.NAME.*``, an instance of the kind's own model.
    """

    state_dir: Path
    jobs_root: Path
    keep_for: float = 0.0
    cgroup: str = "auto"
    options: Any = None


@dataclass(frozen=True)
class RunnerType:
    """A kind of runner.

    Attributes:
        make: makes a runner, which does nothing before its `open`. Raises `ConfigError` for impossible options.
        options: model of the settings ``jobs.NAME.*``.
    """

    make: Callable[[Setup], Runner]
    options: type[Options] = Options
