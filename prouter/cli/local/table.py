"""Lists of tokens and invitations, and what is printed once one of them is revoked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from prouter.cli.remote.output import Column, output_kind

__all__ = ["columns", "local_time", "print_revoked"]

T = TypeVar("T")


def columns(titles: Sequence[str], row: Callable[[T], Sequence[str]]) -> list[Column[T]]:
    """Return the columns of a table from a function that returns a row's cells."""

    def column(number: int, title: str) -> Column[T]:
        return Column(title, lambda one: row(one)[number])

    return [column(number, title) for number, title in enumerate(titles)]


def print_revoked(identifier: str) -> None:
    """Print that a token or an invitation is revoked, in the form that ``-o`` names."""
    kind = output_kind()
    if kind in ("json", "jsonl"):
        click.echo(json.dumps({"id": identifier, "state": "revoked"}))
    else:
        click.echo(identifier if kind == "name" else f"revoked {identifier}")


def local_time(moment: float) -> str:
    """Return a time, in seconds since the epoch, as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
