"""Every command is in the catalogue, and has examples that it understands."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import prouter.cli
from prouter.agent.expose.presets import PRESETS
from prouter.cli import main
from prouter.cli.catalogue import COMMANDS, SECTIONS
from prouter.cli.jobs.run import command as run

ROOT = click.Context(main, info_name="prouter")


def commands(command: click.Command = main, path: str = "prouter") -> Iterator[tuple[str, click.Command]]:
    if command is not main:
        yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(ROOT):
            found = command.get_command(ROOT, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


ALL = dict(commands())


def examples(command: click.Command) -> list[str]:
    _, _, listed = inspect.cleandoc(command.help or "").partition("Examples:\n")
    return [line.strip() for line in listed.splitlines() if line.strip()]


def calls(line: str) -> list[list[str]]:
    """The arguments of each call of prouter in a line of shell."""
    inner = re.findall(r"\$\((prouter [^)]*)\)", line)
    outer = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", line)
    found = []
    for part in [*inner, *re.split(r" \| | && ", outer)]:
        words = shlex.split(part.partition(" > ")[0])
        if words[0] == "prouter":
            found.append(words[1:])
    return found


def test_every_module_with_a_command_is_in_the_catalogue() -> None:
    folder = Path(prouter.cli.__file__).parent
    found = {path for path in folder.rglob("*.py") if re.search(r"^def command\(", path.read_text(), re.M)}
    modules = {".".join(("prouter.cli", *path.relative_to(folder).with_suffix("").parts)) for path in found}
    assert modules == {entry.module(name) for name, entry in COMMANDS.items()}
    assert {entry.section for entry in COMMANDS.values()} == set(SECTIONS)


@pytest.mark.parametrize("path", ALL)
def test_a_command_has_two_examples_that_it_understands(path: str) -> None:
    lines = examples(ALL[path])
    assert len(lines) >= 2
    used = [call for line in lines for call in calls(line)]
    assert len([call for call in used if shlex.join(call).startswith(path.removeprefix("prouter ").split()[0])]) >= 1
    for words in used:
        command: click.Command = main
        context = ROOT
        while isinstance(command, click.Group):
            found = command.get_command(context, words[0])
            if found is None:  # options of the group, or of `up`
                break
            command, words = found, words[1:]
            context = click.Context(command, parent=context, info_name=command.name)
            if words and words[0].startswith("-") and isinstance(command, click.Group):
                break
        if not isinstance(command, click.Group):
            command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("path", ALL)
def test_help_is_shown_without_a_router(path: str) -> None:
    result = CliRunner().invoke(main, [*path.split()[1:], "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_help_groups_the_commands() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert [line[:-1] for line in shown.splitlines() if line[:-1] in SECTIONS] == list(SECTIONS)


def test_run_knows_the_presets() -> None:
    [option] = [one for one in run.params if one.name == "preset"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(PRESETS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ps", "--bogus"],
        ["nonsense"],
        ["cp", "a", "b"],
        ["wait", "--timeout", "x", "j"],
        ["run"],
        ["run", "--template", "lab", "--", "true"],
        ["run", "--template", "lab", "--env", "A=b"],
    ],
)
def test_usage_errors_are_one_line_that_says_where_help_is(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("prouter: ")
    assert line.endswith("--help'")


WITHOUT_RESULTS = {"up", "agent", "broker", "demo", "config", "keygen", "open", "forward", "completion"}


@pytest.mark.parametrize("path", [path for path, found in ALL.items() if not isinstance(found, click.Group)])
def test_all_results_are_there_for_programs(path: str) -> None:
    has_output = any("-o" in option.opts for option in ALL[path].params)
    assert has_output == (path.split()[1] not in WITHOUT_RESULTS)


@pytest.mark.parametrize("command", ["up", "agent", "broker"])
def test_configuration_keys_are_as_wide_as_the_terminal(command: str) -> None:
    listed = (
        CliRunner().invoke(main, [command, "--help"], prog_name="prouter").stdout.partition("Configuration keys:")[2]
    )
    assert listed.count(" - ") > 40
    assert max(map(len, listed.splitlines())) <= 80
