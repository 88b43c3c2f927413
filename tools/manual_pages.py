"""Write a manual page for ``prouter`` and one for each of its commands, from what ``--help`` says.

python -m tools.manual_pages FOLDER
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from prouter import __version__
from prouter.cli import main as program
from prouter.cli.catalogue import COMMANDS
from tools.packages import ROOT, source_date

_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", "|": "|\\:"})


def main() -> int:
    """Write the pages into the folder of the command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages(source_date(ROOT)).items():
        (folder / name).write_text(page, encoding="utf-8")
    return 0


def pages(seconds: int) -> dict[str, str]:
    """Return every page in man(7)'s format, by file name.

    Args:
        seconds: the date in the pages' footers, since 1970.
    """
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    context = click.Context(program, info_name="prouter")
    written = {"prouter.1": "\n".join(_page(program, context, "jobs on many machines behind one HTTP API", date))}
    for name, entry in COMMANDS.items():
        command = program.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        written[f"prouter-{name}.1"] = "\n".join(_page(command, inner, entry.help.rstrip("."), date))
    return written


def _page(command: click.Command, context: click.Context, summary: str, date: str) -> Iterator[str]:
    name = context.command_path.replace(" ", "-")
    yield f'.TH {_text(name.upper())} 1 {date} "pRouter {__version__}" "pRouter"'
    yield from (".nh", ".ad l", ".SH NAME", f"{_text(name)} \\- {_text(summary[0].lower() + summary[1:])}")
    yield from (".SH SYNOPSIS", _synopsis(command, context))
    yield from (".SH DESCRIPTION", *_paragraphs(command.help))
    yield from _options(command, context, ".SH OPTIONS")
    if command is program:
        yield ".SH COMMANDS"
        for other, entry in COMMANDS.items():
            yield from (".TP", f"\\fBprouter\\-{_text(other)}\\fR(1)", _text(entry.help))
    elif isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for other in command.list_commands(context):
            yield from _part(command, other, context)
    if command.epilog:
        yield from (".SH CONFIGURATION", *_keys(command.epilog))
    if command is not program:
        yield from (".SH SEE ALSO", "\\fBprouter\\fR(1)")
    yield ""


def _part(group: click.Group, name: str, context: click.Context) -> Iterator[str]:
    """Yield the section of a command below another command."""
    command = group.get_command(context, name)
    assert command is not None
    inner = click.Context(command, info_name=name, parent=context)
    yield from (f".SS {_text(inner.command_path)}", _synopsis(command, inner), ".PP", *_paragraphs(command.help))
    yield from _options(command, inner, ".PP")


def _synopsis(command: click.Command, context: click.Context) -> str:
    words = " ".join(command.collect_usage_pieces(context))
    return f"\\fB{_text(context.command_path)}\\fR {_text(words)}"


def _options(command: click.Command, context: click.Context, heading: str) -> Iterator[str]:
    records = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
    if records:
        yield heading
    for flags, text in records:
        yield from (".TP", f"\\fB{_text(flags)}\\fR", _text(" ".join(text.split())) or "\\&")


def _keys(epilog: str) -> Iterator[str]:
    """Yield the configuration keys at the end of a help, each a line ``KEY - DESCRIPTION``."""
    for line in epilog.splitlines():
        key, found, description = line.strip().partition(" - ")
        if found:
            yield from (".TP", f"\\fB{_text(key)}\\fR", _text(description))


def _paragraphs(text: str | None) -> Iterator[str]:
    """Yield a help text: paragraphs that click would wrap, and those that it leaves as they are."""
    for index, paragraph in enumerate(inspect.cleandoc(text or "").replace("\f", "").split("\n\n")):
        if index:
            yield ".PP"
        kept = paragraph.startswith("\b")
        lines = paragraph.removeprefix("\b").strip("\n").splitlines()
        yield from (".nf", *map(_text, lines), ".fi") if kept else map(_text, map(str.strip, lines))


def _text(text: str) -> str:
    """Escape what troff would read as its own."""
    escaped = text.translate(_ESCAPES)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    raise SystemExit(main())
