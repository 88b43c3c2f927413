"""``prouter drain``: has agents take no new jobs."""

from __future__ import annotations

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_agents
from prouter.cli.remote.connection import connect
from prouter.cli.views.agents import change_agents

__all__ = ["command"]


@click.command("drain", cls=OutputCommand)
@click.argument("agents", metavar="AGENT...", nargs=-1, required=True, shell_complete=complete_agents)
def command(agents: tuple[str, ...]) -> None:
    """Have agents take no new jobs; running jobs go on.

    \b
    Examples:
      prouter drain gpu-1
      prouter drain $(prouter agents -o name)
    """
    with connect() as router:
        change_agents(router, agents, router.drain)
