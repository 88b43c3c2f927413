"""Options: what may be asked for, and that no value adds an option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prouter.config import ConfigError, load_agent
from prouter.errors import InvalidRequest
from prouter.runners.registry import agent_model
from prouter.runners.slurm.options import JobOptions, SlurmOptions, requested, sbatch_options


def made(
    options: dict[str, Any] | None = None,
    resources: dict[str, Any] | None = None,
    memory_limit: int | None = None,
    **settings: Any,
) -> list[str]:
    return sbatch_options(
        SlurmOptions(**settings), *requested(resources or {}, options or {}), memory_limit=memory_limit
    )


def test_everything_by_name() -> None:
    options = {
        "partition": "gpu,main",
        "account": "a",
        "qos": "high",
        "time": 90,
        "constraint": "a100&nvme",
        "nodes": 2,
    }
    resources = {"cpus": 4, "memory": 1 << 30, "gpus": 1, "matlab": 2}
    assert made(options, resources, licenses=["matlab"]) == [
        "--partition=gpu,main",
        "--account=a",
        "--qos=high",
        "--constraint=a100&nvme",
        "--nodes=2",
        "--time=2",
        "--cpus-per-task=4",
        "--mem=1024M",
        "--gpus=1",
        "--licenses=matlab:2",
    ]


@pytest.mark.parametrize(
    ("text", "minutes"), [("30", 30), ("1:30", 2), ("8:00:00", 480), ("1-12", 2160), ("0:01", 1), ("1-0:30", 1470)]
)
def test_times_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert made({"time": text}) == [f"--time={minutes}"]


def test_defaults_count_where_a_job_says_nothing() -> None:
    settings: dict[str, Any] = {"defaults": {"partition": "main", "qos": "low", "time": 60}, "extra": ["--exclusive"]}
    assert made({"qos": "high"}, **settings) == ["--partition=main", "--qos=high", "--time=1", "--exclusive"]


def test_a_limit_of_memory_leaves_room_for_the_keeper() -> None:
    assert made(memory_limit=100 << 20) == ["--mem=196M"]
    assert made(resources={"memory": 300 << 20}, memory_limit=100 << 20) == ["--mem=300M"]


def test_resources_that_are_no_licences_of_the_cluster_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resources\.matlab: no such resource"):
        made(resources={"matlab": 1})


def test_extra_options_by_the_list_only() -> None:
    assert made({"extra": ["--exclude=n1", "--exclusive"]}, allow=["exclude", "--exclusive"]) == [
        "--exclude=n1",
        "--exclusive",
    ]
    with pytest.raises(ValueError, match=r"slurm\.extra: --exclude is not allowed"):
        made({"extra": ["--exclude=n1"]})


@pytest.mark.parametrize("name", ["--uid", "--wrap", "--output", "--comment", "uid=0", "-p", "--a b", "--export"])
def test_what_the_runner_depends_on_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ValidationError):
        SlurmOptions(allow=[name])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "a b"),
        ("partition", "--uid=0"),
        ("account", "x\n#SBATCH --uid=0"),
        ("gres", ""),
        ("qos", "'"),
        ("time", "tomorrow"),
        ("time", 0),
        ("nodes", 0),
        ("colour", "red"),
    ],
)
def test_wrong_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"slurm\.{field}"):
        requested({}, {field: value})


@pytest.mark.parametrize(("name", "value"), [("cpus", 0), ("memory", 1.5), ("licence", -1)])
def test_wrong_resources_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"resources\.{name}"):
        requested({name: value}, {})


@given(st.sampled_from(["partition", "account", "qos", "constraint", "gres", "reservation"]), st.text())
def test_no_value_adds_an_option(field: str, value: str) -> None:
    try:
        job = JobOptions(**{field: value})
    except ValidationError:
        return
    (option,) = sbatch_options(SlurmOptions(), job, requested({}, {})[1], memory_limit=None)
    assert option == f"--{field}={value}"
    assert not set(value) & set(" \t\n\r\"'\\;$`<>")


def test_defaults_come_from_the_configuration() -> None:
    example = Path(__file__).parents[4] / "deploy" / "slurm" / "agent.yaml"
    options = load_agent(str(example), (), {}, agent_model()).jobs.slurm  # type: ignore[attr-defined]
    assert (options.defaults.partition, options.defaults.time) == ("interactive", 8 * 3600)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("partiton=x", "there is no field 'partiton'; those are partition, account"),
        ("nodes=0", "nodes: Input should be greater than or equal to 1"),
        ("time=soon", "time: must be a number of seconds"),
    ],
)
def test_wrong_defaults_are_named(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"jobs\.slurm\.defaults: {told}"):
        load_agent(None, (f"jobs.slurm.defaults.{setting}",), {}, agent_model())


def test_a_limit_of_time_is_asked_of_slurm_unless_the_job_says_a_walltime() -> None:
    defaults = SlurmOptions(defaults={"time": 7200})
    assert sbatch_options(defaults, *requested({}, {}), memory_limit=None) == ["--time=120"]
    assert sbatch_options(defaults, *requested({}, {}), memory_limit=None, timeout=90) == ["--time=3"]
    assert sbatch_options(defaults, *requested({}, {"time": 60}), memory_limit=None, timeout=900) == ["--time=1"]
