"""``prouter top``: agents and jobs, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.failures import describe
from prouter.cli.remote.output import Column, emit, output_kind
from prouter.cli.views.agents import AGENT_COLUMNS, emit_agents
from prouter.cli.views.usage import JOB_COLUMNS, Usage
from prouter.client import Router, RouterError
from prouter.texts import visible

__all__ = ["command"]

T = TypeVar("T")


@click.command("top", cls=OutputCommand)
@click.option("--every", type=DURATION, default=2.0, metavar="DURATION", help="Time between two looks [default: 2s].")
@click.option("--once", is_flag=True, help="Print it once and end; so it is too where stdout is no terminal.")
def command(every: float, once: bool) -> None:
    """Watch agents and jobs that have not ended, with their CPU time and memory. Ctrl-C ends it.

    \b
    Examples:
      prouter top
      prouter top --once -o json
    """
    with connect(LONG) as router:
        usage = Usage(router)
        if once or output_kind() != "table" or not sys.stdout.isatty():
            if output_kind() == "table":
                emit_agents(router.connections())
                click.echo()
            emit(usage.rows(), JOB_COLUMNS, raw=lambda row: row.raw, name=lambda row: row.info.uid)
        else:
            _watch(router, usage, max(0.2, every))


def _watch(router: Router, usage: Usage, every: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def look() -> Group:
        try:
            agents, rows = router.connections(), usage.rows()
        except RouterError as error:
            return Group(Text(describe(error), style="red"))
        title = Text(f"{router.url}  {time.strftime('%H:%M:%S')}  {len(agents)} agents, {len(rows)} jobs")
        return Group(title, Text(), _table(AGENT_COLUMNS, agents), Text(), _table(JOB_COLUMNS, rows))

    with Live(look(), console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(look(), refresh=True)


def _table(columns: Sequence[Column[T]], rows: Iterable[T]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.title, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(column.cell(row)), style=column.colour(row) or "") for column in columns))
    return table
