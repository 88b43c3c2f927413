"""``prouter rm``: removes jobs."""

from __future__ import annotations

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import output_kind
from prouter.cli.views.jobs import emit_jobs
from prouter.client import JobInfo, NotFound, Router

__all__ = ["command"]


@click.command("rm", cls=OutputCommand)
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_jobs)
@click.option("-f", "--force", is_flag=True, help="Do not complain about jobs that are not there.")
def command(jobs: tuple[str, ...], force: bool) -> None:
    """Remove jobs: end what still runs of them, and delete their files and logs.

    \b
    Examples:
      prouter rm web
      prouter rm -f 4f3a 9b21
      prouter rm $(prouter ps -q --state FINISHED)
    """
    with connect(LONG) as router:
        removed = [_removed(router, job, force) for job in dict.fromkeys(jobs)]
    emit_jobs([info for info in removed if info is not None], kind="name" if output_kind() == "table" else None)


def _removed(router: Router, text: str, force: bool) -> JobInfo | None:
    try:
        return find_job(router, text).remove()
    except (NotFound, Failure) as error:
        missing = isinstance(error, NotFound) or error.exit_code == Exit.NOT_FOUND
        if force and missing and " means " not in str(error):
            return None
        raise
