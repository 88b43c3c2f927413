"""From a start request to a `SpawnSpec`: working directory, limits below the ceilings, environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prouter.agent.expose.exposure import Exposure
from prouter.agent.expose.templates import fill
from prouter.agent.jobs.starts.environment import ENDPOINT_VARIABLE, MARK_VARIABLE, at_home, completed, place
from prouter.agent.jobs.state.job import Job
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest, PRouterError
from prouter.jobs import JobRecord
from prouter.requests import Limits, StartRequest
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import Limits as TreeLimits
from prouter.runners.interface import SpawnSpec

__all__ = [
    "effective_limits",
    "options_for",
    "refuse_impossible",
    "reserved",
    "spawn_spec",
    "tree_limits",
    "working_directory",
]


def effective_limits(wanted: Limits | None, ceilings: Limits) -> Limits:
    """The limits of a job: those of its request, and the agent's ceilings for all others.

    Raises:
        InvalidRequest: a limit is over the agent's ceiling.
    """
    if wanted is None:
        return ceilings
    result = {}
    for name in Limits.model_fields:
        value, ceiling = getattr(wanted, name), getattr(ceilings, name)
        if value is not None and ceiling is not None and value > ceiling:
            raise InvalidRequest(
                f"Invalid request: limits.{name}: {value:g} is over this agent's ceiling of {ceiling:g}"
            )
        result[name] = ceiling if value is None else value
    return Limits(**result)


def tree_limits(limits: Limits) -> TreeLimits:
    """Those limits that the runner enforces."""
    return TreeLimits(limits.memory, limits.cpu_seconds, limits.open_files, limits.processes)


def refuse_impossible(request: StartRequest, limits: Limits, runner: str, capabilities: Capabilities) -> None:
    """Refuse what the agent's runner cannot do.

    Raises:
        InvalidRequest: the detail names the field.
    """
    for name, value in tree_limits(limits)._asdict().items():
        if value is not None and name not in capabilities.limits:
            raise InvalidRequest(f"Invalid request: limits.{name}: the runner '{runner}' of this agent cannot limit it")
    if request.forward_stdout and not capabilities.forwards_output:
        raise InvalidRequest(
            f"Invalid request: forward_stdout: the runner '{runner}' of this agent keeps output in files only"
        )


def options_for(request: StartRequest, runner: str) -> dict[str, Any]:
    """The request's options for the runner of this name.

    Raises:
        InvalidRequest: there are options for another runner, or there are some twice.
    """
    given = [
        *(request.runner_options or {}).items(),
        *([("slurm", request.slurm)] if request.slurm is not None else []),
    ]
    if len({name for name, _ in given}) < len(given):
        raise InvalidRequest("Invalid request: slurm: runner_options has such options, too; leave one of them out")
    for name, _ in given:
        if name != runner:
            raise InvalidRequest(
                f"Invalid request: {name}: this agent's runner is '{runner}', which takes no such options; choose an "
                f"agent whose runner is '{name}'"
            )
    return dict(given).get(runner, {})


def working_directory(sandbox: Sandbox, cwd: str | None) -> Path:
    """The absolute path of the directory in which a job starts.

    Raises:
        InvalidRequest: it is not a directory inside the sandbox.
    """
    if cwd is None or cwd in (".", "./"):
        return sandbox.root
    try:
        return sandbox.directory(os.fsencode(cwd))
    except PRouterError as error:
        raise InvalidRequest(f"Invalid request: cwd: {error.detail}") from error


def reserved(request: StartRequest, record: JobRecord, capabilities: Capabilities) -> dict[str, float]:
    """What the runner is to reserve: what the start asks for, else what the creation asked for, in whole pieces."""
    if request.resources:
        return dict(request.resources)
    return {name: math.ceil(amount) for name, amount in record.resources.items() if name in capabilities.reserves}


def spawn_spec(
    job: Job,
    request: StartRequest,
    exposure: Exposure,
    base: Mapping[str, str],
    *,
    home: str,
    report_url: str,
    cwd: Path,
    record: dict[str, Any],
    resources: Mapping[str, float],
    options: Mapping[str, Any],
    same_machine: bool,
) -> SpawnSpec:
    """The `SpawnSpec` of a start.

    Args:
        base: the environment all jobs of the agent have.
        home: its HOME if the request does not say, ``agent`` or ``sandbox``.
        report_url: where jobs report their ports.
        record: what the runner is to keep for a later agent.
        resources: what is reserved for the job.
        options: the request's options for the runner.
        same_machine: whether the job runs on this machine, where it reaches `report_url`.
    """
    sandbox = str(job.sandbox.root)
    user = job.sandbox.user
    reports = bool(exposure.plan.expected)
    report_to = report_url if reports else None
    if user is not None or (request.home or home) == "sandbox":
        base = at_home(base, sandbox)
    if user is not None:
        base = {**base, "USER": user.name, "LOGNAME": user.name}
    env = {**base, **place(job.record, sandbox, report_to=report_to), **_variables(job, exposure)}
    tokens = exposure.tokens if exposure.plan.templates else {}
    requested = {name: fill(value, tokens) for name, value in request.env.items()}
    env = {**completed({**env, **requested}, requested), MARK_VARIABLE: job.uid}
    if not same_machine:
        env.pop(ENDPOINT_VARIABLE, None)
    return SpawnSpec(
        job=job.uid,
        argv=exposure.arguments(request.args),
        env=env,
        cwd=str(cwd),
        stdout=None if request.forward_stdout else str(job.sandbox.logs.path("stdout")),
        stderr=None if request.forward_stdout else str(job.sandbox.logs.path("stderr")),
        limits=tree_limits(job.limits),
        record=record,
        remove_on_loss=sandbox,
        user=user,
        name=job.record.name,
        resources=resources,
        timeout=request.limits.timeout if request.limits is not None else None,
        options=options,
        port=exposure.port.number if exposure.port is not None else None,
        report_variable=ENDPOINT_VARIABLE if reports and not same_machine else None,
    )


def _variables(job: Job, exposure: Exposure) -> dict[str, str]:
    """The variables of the preset, whose files are written with the rights of the job's user."""
    preset = exposure.plan.preset
    if job.sandbox.user is None or preset is None or preset.config is None:
        return exposure.variables(job.config)
    with job.sandbox.acting():
        opened = job.sandbox.make_directory((os.fsencode(job.config.name),))
        try:
            return exposure.variables(job.config, Path(f"/proc/self/fd/{opened}"))
        finally:
            os.close(opened)
