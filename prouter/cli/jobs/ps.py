"""``prouter ps``: lists jobs."""

from __future__ import annotations

from collections.abc import Iterator

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_agents
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_agent
from prouter.cli.views.jobs import emit_jobs
from prouter.client import JobInfo, Router

__all__ = ["command"]

_UNFINISHED = ("NEW", "PENDING", "RUNNING")
_STATES = (*_UNFINISHED, "FINISHED", "CLOSED")


@click.command("ps", cls=OutputCommand)
@click.option("-a", "--all", "every", is_flag=True, help="Also jobs that have ended.")
@click.option("--state", "states", multiple=True, metavar="|".join(_STATES),
              type=click.Choice(_STATES, case_sensitive=False),
              help="Only jobs in this state; several times for several. CLOSED lists removed jobs.")  # fmt: skip
@click.option("--owner", metavar="NAME", help="Only jobs of this owner.")
@click.option("--name", metavar="NAME", help="Only jobs of this name.")
@click.option("--agent", metavar="UID", shell_complete=complete_agents, help="Only jobs of this agent.")
@click.option("-q", "--quiet", is_flag=True, help="Print uids alone, as -o name.")
def command(
    every: bool, states: tuple[str, ...], owner: str | None, name: str | None, agent: str | None, quiet: bool
) -> None:
    """List jobs, newest first: those that have not ended, unless told otherwise.

    \b
    Examples:
      prouter ps
      prouter ps -a --owner alice -o json
      prouter rm $(prouter ps -q --state FINISHED)
    """
    wanted = list(states) or (None if every else list(_UNFINISHED))
    with connect() as router:
        uid = find_agent(router, agent).agent.uid if agent else None
        emit_jobs(_infos(router, wanted, owner, name, uid), kind="name" if quiet else None)


def _infos(
    router: Router, states: list[str] | None, owner: str | None, name: str | None, agent: str | None
) -> Iterator[JobInfo]:
    for job in router.list(state=states, owner=owner, name=name, agent=agent):
        yield job.latest
