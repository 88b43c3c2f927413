"""Runners are found by entry points and bring keys of the configuration; what they cannot do is told at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from prouter.agent.jobs.choice import make_runner
from prouter.cli.options import agent_config
from prouter.config import AgentConfig, ConfigError
from prouter.runners import RunnerType
from prouter.runners.local.runner import LocalRunner
from prouter.runners.registry import find, names
from tests.runners.guarded.runner import GuardedRunner
from tests.support.runners import distribution


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with a runner, one that cannot be loaded, one that is none, and one with a name that is a key."""
    site = tmp_path / "site"
    site.mkdir()
    runner = "tests.runners.guarded:RUNNER"
    monkeypatch.syspath_prepend(
        str(distribution(site, guarded=runner, broken="no_such_package:RUNNER", odd="sys:path", limits=runner))
    )


def config(*sets: str) -> AgentConfig:
    return agent_config(None, sets, None)


def test_the_projects_own_runners_are_always_there() -> None:
    assert "local" in names()
    assert isinstance(find("local"), RunnerType)


def test_an_agent_runs_jobs_on_its_own_machine_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    assert isinstance(make_runner(config().jobs, tmp_path), LocalRunner)


@pytest.mark.usefixtures("installed")
def test_a_runner_of_another_distribution_gets_its_options(tmp_path: Path) -> None:
    made = make_runner(config("jobs.runner=guarded", "jobs.guarded.slots=3").jobs, tmp_path)
    assert isinstance(made, GuardedRunner)
    assert made._setup.options.slots == 3
    assert made._setup.state_dir == tmp_path / "runner-guarded"
    assert config("jobs.guarded={'slots': 5}").model_dump()["jobs"]["guarded"] == {"slots": 5}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["jobs.runner=nothing"], "there is no runner 'nothing'; installed are broken, guarded, limits, local, odd"),
        (["jobs.runner=broken"], "'broken' (no_such_package:RUNNER) cannot be loaded: No module named"),
        (["jobs.runner=odd"], "'odd' (sys:path) is no prouter.runners.RunnerType"),
        (["jobs.runner=limits"], "a runner cannot have the name 'limits'"),
        (["jobs.runner=guarded", "jobs.limits.memory=1000000"], "jobs.limits.memory: the runner 'guarded' cannot"),
        (["jobs.runner=guarded", "jobs.user=nobody"], "jobs.user: the runner 'guarded' starts jobs as the agent's own"),
        (["jobs.guarded.slots=0"], "jobs.guarded.slots: a whole number of at least 1 is expected, got 0"),
        (["jobs.guarded.slot=1"], "did you mean jobs.guarded.slots?"),
        (["jobs.absent.slots=1"], "there is no key 'jobs.absent.slots'"),
    ],
)
def test_a_configuration_that_cannot_work_is_explained(tmp_path: Path, sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_runner(config(*sets).jobs, tmp_path)
    assert said in str(caught.value)
