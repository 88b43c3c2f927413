"""Runners are found by entry points and bring keys of the configuration; what they cannot do is told at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from prouter.agent.jobs.choice import make_runner
from prouter.cli.local.options import agent_config
from prouter.config import AgentConfig, ConfigError
from prouter.runners import INTERFACE, Capabilities, Options, Runner, RunnerType, Setup, registry
from prouter.runners.local.runner import LocalRunner
from prouter.runners.registry import find, made, names
from tests.runners.guarded.runner import GuardedRunner
from tests.support.runners import distribution

OTHER_VERSION = RunnerType(GuardedRunner, interface=INTERFACE + 1)
MISTAKES = {
    "no_runner": (lambda setup: object(), "object is no subclass of prouter.runners.Runner"),
    "unfinished": (
        type("Unfinished", (Runner,), {"__init__": lambda self, setup: None}),
        "'no_name' cannot be made: TypeError: Can't instantiate",
    ),
    "no_capabilities": (
        type("Bare", (GuardedRunner,), {"capabilities": None}),
        "Bare.capabilities has to be a prouter.runners.Capabilities, not None",
    ),
    "odd_limit": (
        type("Odd", (GuardedRunner,), {"capabilities": Capabilities(same_machine=True, limits=frozenset({"ram"}))}),
        "Odd.capabilities.limits names 'ram', which is no limit; there are memory, cpu_seconds",
    ),
    "raises": (lambda setup: 1 / 0, "'no_name' cannot be made: ZeroDivisionError: division by zero"),
}


class NeedsOne(Options):
    """Options that cannot be left out, as no runner may have."""

    partition: str


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
        (["jobs.runner=broken"], "(no_such_package:RUNNER) cannot be loaded: ModuleNotFoundError: No module named"),
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_made_has_to_be_a_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    make, said = MISTAKES[mistake]
    monkeypatch.setattr(registry, "find", lambda name: RunnerType(make))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        made("no_name", Setup(tmp_path, tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "said"), [(NeedsOne, "NeedsOne.partition needs a default"), (dict, "no subclass")])
def test_options_are_checked_when_the_kind_of_runner_is_made(options: type[Options], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        RunnerType(GuardedRunner, options)


def test_a_runner_for_another_version_of_the_interface_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, later=f"{__name__}:OTHER_VERSION")))
    with pytest.raises(ConfigError, match=f"was written for version {INTERFACE + 1} of the interface of runners"):
        find("later")
    assert isinstance(find("local"), RunnerType)


def test_a_module_that_exits_when_it_is_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_when_imported.py").write_text("raise SystemExit('no license for\\nthis machine')")
    monkeypatch.syspath_prepend(str(distribution(tmp_path, leaving="exits_when_imported:RUNNER")))
    with pytest.raises(ConfigError, match="cannot be loaded: SystemExit: no license for this machine"):
        find("leaving")


def test_two_packages_cannot_have_the_same_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("one", "tests.runners.guarded:RUNNER"), ("two", "other:RUNNER")):
        (tmp_path / name).mkdir()
        monkeypatch.syspath_prepend(str(distribution(tmp_path / name, shared=value, local=value)))
    with pytest.raises(ConfigError, match=r"two packages have a runner 'shared' .* and .*; uninstall one of them"):
        find("shared")
    assert find("local").make is LocalRunner, "the name of the project's own runner is not for others"
