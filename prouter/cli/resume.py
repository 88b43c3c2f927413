"""``prouter resume``: has drained agents take jobs again."""

from __future__ import annotations

import click

from prouter.cli.remote.agent_views import emit_agents
from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_agents
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_agent

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
        found = [find_agent(router, agent) for agent in agents]
        for connection in found:
            router.resume(connection.uid)
        changed = {connection.uid for connection in found}
        emit_agents([one for one in router.connections() if one.uid in changed])
