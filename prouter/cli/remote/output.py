"""Results of commands: a table for people, JSON, JSON lines, or names alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click

from prouter.texts import visible

__all__ = ["KINDS", "Column", "coloured", "emit", "emit_fields", "keep_output", "output_kind", "output_option"]

T = TypeVar("T")
KINDS = ("table", "json", "jsonl", "name")
_KEY = "prouter.cli.output"


def keep_output(context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Keep the value of ``-o`` for `output_kind`; a default overrides nothing."""
    if value != KINDS[0] or _KEY not in context.meta:
        context.meta[_KEY] = value
    return value


def output_option() -> click.Option:
    """Return ``-o``, whose value `output_kind` returns."""

    return click.Option(
        ["-o", "--output"],
        type=click.Choice(KINDS),
        default="table",
        show_default=True,
        expose_value=False,
        callback=keep_output,
        help="Form of the output: a table, JSON, one JSON object per line, or names (uids) alone.",
    )


def output_kind() -> str:
    """Return the form that the command's ``-o`` names."""
    kind: str = click.get_current_context().meta.get(_KEY, "table")
    return kind


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        title: in capitals.
        cell: returns a row's text; it may hold any characters.
        colour: returns the colour of a row's cell, or None.
    """

    title: str
    cell: Callable[[T], str]
    colour: Callable[[T], str | None] = lambda _: None


def emit(
    rows: Iterable[T],
    columns: Sequence[Column[T]],
    *,
    raw: Callable[[T], Mapping[str, Any]],
    name: Callable[[T], str],
    kind: str | None = None,
) -> None:
    """Print rows in the form that ``-o`` names.

    Args:
        raw: returns what JSON shows of a row: what the router answered.
        name: returns what ``-o name`` prints.
    """
    kind = kind or output_kind()
    if kind == "json":
        click.echo(json.dumps([dict(raw(row)) for row in rows], indent=2))
    elif kind == "jsonl":
        for row in rows:
            click.echo(json.dumps(dict(raw(row))))
    elif kind == "name":
        for row in rows:
            echo_name(name(row))
    else:
        _table(list(rows), columns)


def emit_fields(fields: Mapping[str, str], raw: Mapping[str, Any], name: str) -> None:
    """Print one thing: its fields below each other, or as JSON, or its name."""
    kind = output_kind()
    if kind in ("json", "jsonl"):
        click.echo(json.dumps(dict(raw), indent=2 if kind == "json" else None))
    elif kind == "name":
        echo_name(name)
    else:
        width = max(map(len, fields))
        for key, value in fields.items():
            click.echo(f"{key.ljust(width)}  {visible(value)}")


def echo_name(name: str) -> None:
    """Print a name on a line of its own, byte for byte unless a terminal would obey it."""
    click.echo(visible(name) if sys.stdout.isatty() else os.fsencode(name))


def coloured(text: str, colour: str | None) -> str:
    """Return the text in a colour, where stdout is a terminal and NO_COLOR is not set."""
    if colour is None or os.environ.get("NO_COLOR") or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=colour)


def _table(rows: Sequence[T], columns: Sequence[Column[T]]) -> None:
    cells = [[visible(column.cell(row)) for column in columns] for row in rows]
    widths = [max([len(column.title), *(len(row[number]) for row in cells)]) for number, column in enumerate(columns)]
    click.echo("  ".join(column.title.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip())
    last = len(columns) - 1
    for row, texts in zip(rows, cells, strict=True):
        shown = [
            coloured(text if number == last else text.ljust(widths[number]), columns[number].colour(row))
            for number, text in enumerate(texts)
        ]
        click.echo("  ".join(shown).rstrip())
