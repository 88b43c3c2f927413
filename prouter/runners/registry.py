"""Registry of the installed runners, found by their entry points; the project's own need none.

A package adds a runner with an entry point of the group ``prouter.runners``, whose name is that of the setting
``jobs.runner`` and whose object is a `RunnerType` (docs/runners.md). Its options become keys of the configuration.
"""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import create_model

from prouter import __version__
from prouter.config.agent import AgentConfig, AgentJobs
from prouter.config.errors import ConfigError
from prouter.runners.interface import Runner
from prouter.runners.kinds import INTERFACE, RunnerType, Setup, checked

__all__ = ["GROUP", "agent_model", "find", "made", "names"]

GROUP = "prouter.runners"
"""Group of the entry points."""
_OWN = {"local": "prouter.runners.local:RUNNER", "slurm": "prouter.runners.slurm.kind:RUNNER"}
"""The project's own runners, which exist also where it runs from a source tree that was never installed."""

_log = logging.getLogger("prouter.runner")


def names() -> list[str]:
    """The names of all runners that are installed."""
    return sorted(_found())


def find(name: str) -> RunnerType:
    """Return the type of the runner of this name.

    Raises:
        ConfigError: there is none, or it cannot be loaded.
    """
    found = _found().get(name)
    if found is None:
        raise ConfigError(
            f"jobs.runner: there is no runner {name!r}; installed are {', '.join(names())}. Other packages add runners "
            f"by entry points of the group {GROUP}: install one into the agent's Python"
        )
    return _loaded(found)


def agent_model() -> type[AgentConfig]:
    """The model of an agent's configuration, with the options of all runners that are installed as ``jobs.NAME.*``."""
    options: dict[str, Any] = {}
    for name, point in sorted(_found().items()):
        try:
            model = _loaded(point).options
        except ConfigError as error:
            _log.debug(
                "event=runner_has_no_options runner=%s error=%r", name, str(error)
            )  # `find` raises it, if need be.
            continue
        if model.model_fields:
            options[name] = (model, model())
    if not options:
        return AgentConfig
    jobs = create_model("AgentJobs", __base__=AgentJobs, __doc__=AgentJobs.__doc__, **options)
    return create_model("AgentConfig", __base__=AgentConfig, __doc__=AgentConfig.__doc__, jobs=(jobs, jobs()))


def made(name: str, setup: Setup) -> Runner:
    """Make a runner, which is not open.

    Raises:
        ConfigError: there is no such runner, it cannot be made with these options, or it does not fit the interface.
    """
    kind = find(name)
    try:
        return checked(kind.make(setup))
    except ConfigError as error:
        raise _unusable(name, str(error)) from error
    except Exception as error:
        _log.debug("event=runner_not_made runner=%s", name, exc_info=True)
        raise _unusable(name, _told(error)) from error


def _found() -> dict[str, EntryPoint]:
    own = {name: EntryPoint(name, value, GROUP) for name, value in _OWN.items()}
    return {**{point.name: point for point in entry_points(group=GROUP)}, **own}


def _rivals(point: EntryPoint) -> list[str]:
    """The objects that entry points of other packages give the same name."""
    return sorted({one.value for one in entry_points(group=GROUP, name=point.name)} - {point.value})


def _loaded(point: EntryPoint) -> RunnerType:
    if not point.name.isidentifier() or point.name in AgentJobs.model_fields:
        raise ConfigError(f"jobs.runner: a runner cannot have the name {point.name!r}; its options would have no place")
    told = f"{point.name!r} ({point.value})"
    if point.name not in _OWN and _rivals(point):
        raise ConfigError(
            f"jobs.runner: two packages have a runner {told} and {', '.join(_rivals(point))}; uninstall one of them"
        )
    try:
        kind = point.load()
    except (Exception, SystemExit) as error:
        _log.debug("event=runner_not_loaded runner=%s", point.name, exc_info=True)
        raise ConfigError(f"jobs.runner: the runner {told} cannot be loaded: {_told(error)}") from error
    if not isinstance(kind, RunnerType):
        raise ConfigError(f"jobs.runner: the runner {told} is no prouter.runners.RunnerType")
    if kind.interface != INTERFACE:
        raise ConfigError(
            f"jobs.runner: the runner {told} was written for version {kind.interface} of the interface of runners, and "
            f"pRouter {__version__} has version {INTERFACE}: install the version of its package for this pRouter"
        )
    return kind


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(why if why.startswith("jobs.") else f"jobs.runner: the runner {name!r} cannot be made: {why}")


def _told(error: BaseException) -> str:
    """An error of a package in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
