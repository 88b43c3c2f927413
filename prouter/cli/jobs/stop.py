"""``prouter stop``: ends jobs."""

from __future__ import annotations

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.names import find_jobs
from prouter.cli.views.jobs import emit_jobs

__all__ = ["command"]


@click.command("stop", cls=OutputCommand)
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_jobs)
@click.option(
    "-t", "--grace", type=DURATION, metavar="DURATION", help="Time between SIGTERM and SIGKILL [default: 10s]."
)
def command(jobs: tuple[str, ...], grace: float | None) -> None:
    """End jobs: SIGTERM to all their processes, and SIGKILL after the grace period. Files and logs stay.

    \b
    Examples:
      prouter stop web
      prouter stop --grace 60s 4f3a 9b21
    """
    with connect(LONG) as router:
        emit_jobs([job.stop(grace) for job in find_jobs(router, list(jobs))])
