"""Types of runners, which entry points of the group ``prouter.runners`` name, and the making of an agent's runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prouter.config.errors import ConfigError
from prouter.config.section import Section
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import Limits, Runner

__all__ = ["INTERFACE", "Options", "RunnerType", "Setup", "checked"]

INTERFACE = 1
"""Version of the interface of runners; it grows when runners written for the earlier one would not work any more."""


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
        options: the settings ``jobs.NAME.*``, an instance of `RunnerType.options`.
    """

    state_dir: Path
    jobs_root: Path
    keep_for: float = 0.0
    cgroup: str = "auto"
    options: Any = None


@dataclass(frozen=True)
class RunnerType:
    """A type of runner.

    Attributes:
        make: makes a runner, which does nothing before its `open`. Raises `ConfigError` for impossible options.
        options: model of the settings ``jobs.NAME.*``.
        interface: `INTERFACE` of the pRouter for which the runner was written. An agent with another one refuses it.

    Raises:
        TypeError: `options` is no subclass of `Options`, or has a field without a default.
    """

    make: Callable[[Setup], Runner]
    options: type[Options] = Options
    interface: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise TypeError(f"RunnerType.options: {self.options!r} is no subclass of prouter.runners.Options")
        required = [name for name, field in self.options.model_fields.items() if field.is_required()]
        if required:
            raise TypeError(f"RunnerType.options: {self.options.__name__}.{required[0]} needs a default")


def checked(runner: Any) -> Runner:
    """Return what `RunnerType.make` has made, if it is a runner.

    Raises:
        ConfigError: it is no `Runner`, or its capabilities are not `Capabilities`.
    """
    kind = type(runner).__name__
    if not isinstance(runner, Runner):
        raise ConfigError(f"{kind} is no subclass of prouter.runners.Runner")
    can = getattr(runner, "capabilities", None)
    if not isinstance(can, Capabilities):
        raise ConfigError(f"{kind}.capabilities has to be a prouter.runners.Capabilities, not {can!r}")
    unknown = sorted(set(can.limits) - set(Limits._fields))
    if unknown:
        raise ConfigError(
            f"{kind}.capabilities.limits names {unknown[0]!r}, which is no limit; there are {', '.join(Limits._fields)}"
        )
    return runner
