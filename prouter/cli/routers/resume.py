"""``prouter resume``: has drained agents take jobs again."""

from __future__ import annotations

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_agents
from prouter.cli.remote.connection import connect
from prouter.cli.views.agents import change_agents

__all__ = ["command"]


@click.command("resume", cls=OutputCommand)
@click.argument("agents", metavar="AGENT...", nargs=-1, required=True, shell_complete=complete_agents)
def command(agents: tuple[str, ...]) -> None:
    """Have drained agents take new jobs again.

    \b
    Examples:
      prouter resume gpu-1
      prouter resume $(prouter agents -o name)
    """
    with connect() as router:
        change_agents(router, agents, router.resume)
