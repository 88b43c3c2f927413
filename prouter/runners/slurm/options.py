"""What the configuration (``jobs.slurm``) and start requests (``slurm``, ``resources``) may say about Slurm.

Values become ``--option=value``, one argument each, so no value can add another option. Values are plain words: Slurm
reads options from scripts and variables too, and a line break or a quote must mean nothing to any of these readers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prouter.errors import InvalidRequest
from prouter.explanations import explain
from prouter.runners.kinds import Options

__all__ = ["JobOptions", "Resources", "SlurmOptions", "requested", "sbatch_options"]

_WORD = re.compile(r"[A-Za-z0-9_.@%+/:=,&|*()\[\]{}!~^-]{1,256}", re.ASCII)
_OPTION = re.compile(r"--[a-z][a-z0-9-]{1,40}", re.ASCII)
_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4})(?::(\d{1,2}))?(?::(\d{1,2}))?", re.ASCII)
_MIB = 1 << 20
_KEEPER_MEMORY = 96
"""MiB that the keeper and its helpers on the node may need beside a job's own limit of memory."""
_TIMEOUT_SPARE = 60.0
"""Seconds by which a job's walltime is longer than its own limit of time."""
_OURS = frozenset(
    {
        "--array", "--batch", "--bcast", "--chdir", "--clusters", "--comment", "--error", "--export", "--export-file",
        "--get-user-env", "--gid", "--help", "--hold", "--input", "--job-name", "--kill-on-invalid-dep", "--no-requeue",
        "--open-mode", "--output", "--parsable", "--quiet", "--requeue", "--signal", "--test-only", "--uid", "--usage",
        "--version", "--wait", "--wait-all-nodes", "--wrap", "--nodefile",
    }
)  # fmt: skip
"""Options on which the runner depends, or which concern other users and files: nobody may give them."""


def _word(text: str) -> str:
    if _WORD.fullmatch(text) is None or text.startswith("-"):
        raise ValueError("must be letters, digits and signs that Slurm uses in names, without blanks or quotes")
    return text


def _option_name(text: str) -> str:
    name = text if text.startswith("--") else f"--{text}"
    if _OPTION.fullmatch(name) is None:
        raise ValueError("must be the long name of an option of sbatch, such as --licenses")
    if name in _OURS:
        raise ValueError(f"{name} is set by the agent")
    return name


def _option(text: str) -> str:
    """An option with or without a value, ``--name=value``."""
    name, equals, value = text.partition("=")
    name = _option_name(name)
    return f"{name}={_word(value)}" if equals else name


def _seconds(value: Any) -> Any:
    """Seconds, from a number of seconds or from what Slurm calls a time, such as ``30`` minutes or ``1-12:00:00``."""
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value)
    if found is None:
        raise ValueError("must be a number of seconds, or text like '30' (minutes), '8:00:00' or '1-12' (days-hours)")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: (0, numbers[0], 0), 2: (0, *numbers), 3: tuple(numbers)}[len(numbers)]
    return (hours * 60 + minutes) * 60 + seconds


Word = Annotated[str, AfterValidator(_word)]
OptionName = Annotated[str, AfterValidator(_option_name)]
Option = Annotated[str, AfterValidator(_option)]
Time = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class JobOptions(_Model):
    """A start request's ``slurm``: where and how Slurm runs the job."""

    partition: Word | None = Field(default=None, description="Partition, or several with commas between them.")
    account: Word | None = Field(default=None, description="Account that is charged.")
    qos: Word | None = Field(default=None, description="Quality of service.")
    time: Time | None = Field(default=None, description="Walltime: seconds, or text as Slurm writes it ('8:00:00').")
    constraint: Word | None = Field(default=None, description="Features that the node must have.")
    gres: Word | None = Field(default=None, description="Generic resources, such as 'gpu:a100:2'.")
    nodes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Nodes. The job's command runs on the first; srun reaches the others."
    )
    tasks: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Tasks for srun inside the job.")
    reservation: Word | None = Field(default=None, description="Reservation to run in.")
    extra: list[Option] = Field(
        default_factory=list, max_length=32, description="More options of sbatch, if jobs.slurm.allow lists them."
    )


class Resources(_Model):
    """A start request's ``resources``: what the job needs for itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=1)]] = Field(init=False)

    cpus: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Processors.")
    memory: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Bytes of memory.")
    gpus: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Graphics processors.")

    @property
    def licenses(self) -> dict[str, int]:
        """Counts of all other names, which are Slurm's licences."""
        return dict(self.__pydantic_extra__ or {})


class SlurmOptions(Options):
    """Jobs on a Slurm cluster, with ``jobs.runner: slurm``."""

    shared: str | None = Field(
        default=None,
        description="Directory, seen by all nodes under the same path, for the runner's own files. By default a "
        "directory beside the jobs' sandboxes (`jobs.root`), which have to be shared as well.",
    )
    python: str | None = Field(
        default=None,
        description="Python on the nodes, 3.10 or newer, without any packages. By default the agent's own if the node "
        "has it, else `python3`.",
    )
    listen: str = Field(
        default="0.0.0.0:0",
        description="Address and port where nodes connect to the agent. Port 0 is a free one, kept over restarts.",
    )
    address: str | None = Field(
        default=None,
        description="Host name or address by which nodes reach the agent. By default they try the agent's host name "
        "and its addresses towards Slurm's controller and the network.",
    )
    poll: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=15.0,
        description="Seconds between looks at Slurm's queue while all jobs run; at most 2 while some are pending.",
    )
    command_timeout: Annotated[float, Field(ge=1, le=600)] = Field(
        default=30.0, description="Seconds that one of Slurm's commands may take."
    )
    defaults: JobOptions = Field(
        default_factory=JobOptions, description="Fields of `slurm` for jobs that do not set them."
    )
    extra: list[Option] = Field(default_factory=list, description="More options of sbatch, for every job.")
    licenses: list[Word] = Field(
        default_factory=list, description="Slurm's licences that a job may ask for in `resources`, each by its name."
    )
    allow: list[OptionName] = Field(
        default_factory=list, description="Options of sbatch that a job may give in `slurm.extra`."
    )


def requested(resources: Mapping[str, float], options: Mapping[str, Any]) -> tuple[JobOptions, Resources]:
    """What a start request says, checked.

    Raises:
        InvalidRequest: it is wrong; the detail begins with the field's name.
    """
    try:
        wanted = JobOptions.model_validate(dict(options))
    except ValidationError as error:
        raise _wrong("slurm", error, JobOptions) from None
    try:
        return wanted, Resources.model_validate(dict(resources))
    except ValidationError as error:
        raise _wrong("resources", error, Resources) from None


def _wrong(field: str, error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    text = explain(error, model).removeprefix("Invalid request: ")
    return InvalidRequest(f"Invalid request: {field}.{text}")


def sbatch_options(
    options: SlurmOptions,
    job: JobOptions,
    resources: Resources,
    *,
    memory_limit: int | None,
    timeout: float | None = None,
) -> list[str]:
    """The options of sbatch that a job's request and the configuration make.

    Args:
        memory_limit: the job's limit of memory (``limits.memory``), in bytes.
        timeout: the job's limit of time, in seconds.

    Raises:
        ValueError: an extra option is not allowed; the text begins with the field's name.
    """
    for option in job.extra:
        name = option.partition("=")[0]
        if name not in options.allow:
            allowed = f"allowed are {', '.join(options.allow)}" if options.allow else "the agent allows none"
            raise ValueError(f"slurm.extra: {name} is not allowed (jobs.slurm.allow): {allowed}")
    for name in resources.licenses:
        if name not in options.licenses:
            known = ", ".join(["cpus", "memory", "gpus", *options.licenses])
            raise ValueError(f"resources.{name}: no such resource (jobs.slurm.licenses); known are {known}")
    result: dict[str, str | int] = {}
    for field, option in _NAMES.items():
        value = getattr(job, field)
        if value is None:
            value = getattr(options.defaults, field)
        if value is not None:
            result[option] = value
    time = job.time
    if time is None:
        # A little more, so that the agent ends the job before Slurm does.
        time = timeout + _TIMEOUT_SPARE if timeout is not None else options.defaults.time
    if time is not None:
        result["--time"] = max(1, math.ceil(time / 60))
    if resources.cpus is not None:
        result["--cpus-per-task"] = resources.cpus
    memory = _memory(resources.memory, memory_limit)
    if memory is not None:
        result["--mem"] = f"{memory}M"
    if resources.gpus is not None:
        result["--gpus"] = resources.gpus
    if resources.licenses:
        result["--licenses"] = ",".join(f"{name}:{count}" for name, count in sorted(resources.licenses.items()))
    extra = [*options.extra, *options.defaults.extra, *job.extra]
    return [f"{name}={value}" for name, value in result.items()] + extra


_NAMES = {
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "gres": "--gres",
    "nodes": "--nodes",
    "tasks": "--ntasks",
    "reservation": "--reservation",
}


def _memory(wanted: int | None, limit: int | None) -> int | None:
    """MiB to ask for. A limit alone gets some more, so that the keeper sees the excess before Slurm does."""
    if wanted is not None:
        return math.ceil(wanted / _MIB)
    return math.ceil(limit / _MIB) + _KEEPER_MEMORY if limit is not None else None
