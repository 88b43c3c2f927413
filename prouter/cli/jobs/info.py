"""``prouter info``: shows everything about jobs."""

from __future__ import annotations

import json

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_jobs
from prouter.cli.remote.output import emit_fields, output_kind
from prouter.cli.views.jobs import fields

__all__ = ["command"]


@click.command("info", cls=OutputCommand)
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_jobs)
@click.option("--usage", is_flag=True, help="Ask the agent for CPU time and memory as they are now.")
def command(jobs: tuple[str, ...], usage: bool) -> None:
    """Show everything about jobs: state, result, command, agent, times, URL.

    \b
    Examples:
      prouter info web
      prouter info 4f3a -o json
    """
    with connect() as router:
        infos = [job.info(usage=usage) for job in find_jobs(router, list(jobs))]
    if output_kind() == "json" and len(infos) > 1:
        click.echo(json.dumps([dict(info.raw) for info in infos], indent=2))
        return
    for number, info in enumerate(infos):
        if number and output_kind() == "table":
            click.echo()
        emit_fields(fields(info), info.raw, info.uid)
