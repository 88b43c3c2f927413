"""Lists of commands, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

import click

from prouter.texts import visible

__all__ = ["print_table"]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns, the heading first; all have the same number of cells.

    Cells may hold texts of others, such as names of jobs: no character in them controls the terminal.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
