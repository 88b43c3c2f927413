"""``prouter agents``: lists the agents of a router."""

from __future__ import annotations

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.connection import connect
from prouter.cli.views.agents import emit_agents

__all__ = ["command"]


@click.command("agents", cls=OutputCommand)
def command() -> None:
    """List the agents that the router is linked with.

    \b
    Examples:
      prouter agents
      prouter agents -o json
    """
    with connect() as router:
        emit_agents(router.connections())
