"""The ``prouter`` command as a shell runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prouter import __version__

PROUTER = Path(sys.executable).parent / "prouter"
JOIN = "prouter://192.0.2.1:8889/?token=pri_secret"


def prouter(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROUTER, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_version() -> None:
    assert prouter("--version").stdout == f"prouter, version {__version__}\n"


def test_module_and_command_are_the_same() -> None:
    as_module = subprocess.run(
        [sys.executable, "-m", "prouter", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert as_module.stdout == prouter("--version").stdout


def test_help_lists_every_command() -> None:
    shown = prouter("--help").stdout
    for command in ("agent", "broker", "config", "demo", "invite", "keygen", "up"):
        assert f"\n  {command} " in shown


@pytest.mark.parametrize(
    "command", ["", "agent", "broker", "config", "demo", "invite", "invite list", "invite revoke", "keygen", "up"]
)
def test_help_of_a_command_has_two_examples(command: str) -> None:
    shown = prouter(*command.split(), "--help").stdout
    _, _, examples = shown.partition("Examples:\n")
    lines = examples.partition("\n\n")[0].splitlines()
    assert len(lines) >= 2
    assert all(line.strip().startswith("prouter") for line in lines)


def test_an_unknown_command_is_refused() -> None:
    result = prouter("upp")
    assert result.returncode == 2
    assert "there is no command 'upp', but 'prouter up'; see 'prouter --help'" in result.stderr


@pytest.mark.parametrize("command", ["up", "broker", "agent", "config"])
def test_a_wrong_value_is_one_line_and_status_2(command: str) -> None:
    result = prouter(command, "--set", "log.level=loud")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("prouter: --set: log.level: ")
    assert not result.stdout


def test_config_prints_and_asks_nothing() -> None:
    result = prouter("config", "--agent", "--set", "client.token=hush")
    assert result.returncode == 0
    assert "reconnect_delay: 1.0" in result.stdout
    assert "hush" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--join", "192.0.2.1:8889"), "--join: a URL like prouter://HOST:PORT/?key="),
        (("--join", JOIN, "--set", "client.enabled=False"), "--join: client.enabled is off"),
        (("--join", JOIN), "client.address: 192.0.2.1:8889 is another machine"),
        (("--set", "client.address=192.0.2.1:8889"), "'prouter agent --join URL'"),
        (("--set", "client.router_key=/nowhere/r.key"), "client.router_key: neither a key in Z85 nor a file"),
    ],
)
def test_an_agent_that_could_not_link_says_what_is_wrong(
    arguments: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    result = prouter("agent", "--set", f"state.dir={tmp_path}", *arguments)
    assert result.returncode == 2
    assert problem in result.stderr
    assert "pri_secret" not in result.stderr
    assert not (tmp_path / "routers.json").exists()
