"""Write the reference of docs/cli.md from the commands themselves; ``--check`` fails if it is not up to date."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from prouter.cli.catalogue import COMMANDS, SECTIONS
from tools.generated_page import between, write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
OPENING, CLOSING = "<!-- reference -->", "<!-- end -->"
EVERYWHERE = ("url", "token_file", "context", "output")
"""Options that the page describes once."""


def main() -> int:
    """Write or check the page and return the exit status."""
    return write_or_check(PAGE, between(PAGE.read_text(), OPENING, CLOSING, _reference()))


def _reference() -> Iterator[str]:
    for section in SECTIONS:
        yield f"## {section}\n"
        for name, entry in COMMANDS.items():
            if entry.section == section:
                command = importlib.import_module(entry.module(name)).command
                yield from _command(command, f"prouter {name}", "###")


def _command(command: click.Command, path: str, heading: str) -> Iterator[str]:
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    with click.Context(command, info_name=path) as context:
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        options = [one for one in command.get_params(context) if _is_shown(one)]
    yield f"{heading} {path}\n"
    yield f"    {usage}\n"
    yield f"{text.replace('<', '&lt;').strip()}\n"
    if options:
        yield "| option | meaning |\n| --- | --- |"
        for option in options:
            yield f"| {_names(option)} | {_cell(option.help or '')} |"
        yield ""
    yield from ("```text", inspect.cleandoc(examples), "```", "")
    if isinstance(command, click.Group):
        with click.Context(command, info_name=path) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from _command(found, f"{path} {name}", "####")


def _is_shown(parameter: click.Parameter) -> bool:
    known = parameter.name in EVERYWHERE or "--help" in parameter.opts
    return isinstance(parameter, click.Option) and not parameter.hidden and not known


def _names(option: click.Parameter) -> str:
    assert isinstance(option, click.Option)
    value = option.metavar or ("|".join(option.type.choices) if isinstance(option.type, click.Choice) else "VALUE")
    suffix = "" if option.is_flag else f" {value}"
    names = [f"`{name}{suffix}`" for name in option.opts]
    return ", ".join(names).replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    raise SystemExit(main())
