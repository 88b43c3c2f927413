"""The agent's runner, made by its settings, and the settings that it cannot carry out."""

from __future__ import annotations

import logging
from pathlib import Path

from prouter.config import ConfigError
from prouter.config.agent import AgentJobs
from prouter.errors import AgentUnavailable, PRouterError
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import Kept, Limits, Reports, Runner
from prouter.runners.kinds import Setup
from prouter.runners.registry import find, made

__all__ = ["jobs_root", "keep_for", "make_runner", "opened"]

_log = logging.getLogger("prouter.runner")

_LOCAL = "local"
_LOCAL_STATE = "keeper"
"""Name of the state directory of the local runner, where earlier versions left their keepers."""
_OUTLIVED = 7 * 86400.0
"""Seconds for which routers keep the jobs of an agent that is away, if these run on without it. Then it is lost."""


def keep_for(jobs: AgentJobs, runner: Runner) -> float:
    """For how many seconds jobs outlive the agent, as far as routers are concerned; 0 if they end with it."""
    return max(jobs.keep_for, _OUTLIVED if runner.capabilities.outlives_agent else 0.0)


def jobs_root(jobs: AgentJobs, state_dir: Path) -> Path:
    """The directory of the sandboxes."""
    return Path(jobs.root).absolute() if jobs.root else state_dir / "jobs"


def make_runner(jobs: AgentJobs, state_dir: Path) -> Runner:
    """Make the runner of ``jobs.runner``, with its options.

    Args:
        state_dir: the agent's.

    Raises:
        ConfigError: there is no such runner, it cannot be made, or it cannot carry out other settings.
    """
    name = jobs.runner
    kind = find(name)
    own = state_dir / (_LOCAL_STATE if name == _LOCAL else f"runner-{name}")
    options = getattr(jobs, name, None)
    if not isinstance(options, kind.options):
        options = kind.options()
    runner = made(name, Setup(own, jobs_root(jobs, state_dir), jobs.keep_for, jobs.cgroup, options))
    _refuse(jobs, name, runner.capabilities)
    return runner


def opened(runner: Runner, reports: Reports) -> list[Kept]:
    """Open a runner; return the jobs that outlived an earlier agent.

    Raises:
        PRouterError: as of `Runner.open`; `AgentUnavailable` if the runner is broken.
    """
    kind = type(runner).__name__
    try:
        kept = runner.open(reports)
    except PRouterError:
        raise
    except Exception as error:
        _log.debug("event=runner_not_opened runner=%s", kind, exc_info=True)
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise AgentUnavailable(f"jobs.runner: {kind} cannot be opened: {why}") from error
    if not isinstance(kept, list) or not all(isinstance(one, Kept) for one in kept):
        raise AgentUnavailable(f"jobs.runner: {kind}.open returned {kept!r}, which is no list of Kept")
    return kept


def _refuse(jobs: AgentJobs, name: str, can: Capabilities) -> None:
    if jobs.user is not None and not can.users:
        raise ConfigError(f"jobs.user: the runner '{name}' starts jobs as the agent's own user only; remove jobs.user")
    if jobs.root is None and not can.same_machine:
        raise ConfigError(
            f"jobs.root: the runner '{name}' starts jobs on other machines, so their sandboxes have to be in a "
            "directory that all of these share; set jobs.root to one"
        )
    for limit in Limits._fields:
        if getattr(jobs.limits, limit) is not None and limit not in can.limits:
            raise ConfigError(f"jobs.limits.{limit}: the runner '{name}' cannot limit it; remove the key")
