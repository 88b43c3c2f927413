"""``prouter wait``: waits for the end of jobs."""

from __future__ import annotations

import time

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.exits import Exit, of_job
from prouter.cli.remote.failures import Failure, describe
from prouter.cli.remote.names import find_jobs
from prouter.cli.views.jobs import emit_jobs
from prouter.client import RouterError, TimedOut

__all__ = ["command"]


@click.command("wait", cls=OutputCommand)
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_jobs)
@click.option("--timeout", type=DURATION, metavar="DURATION", help="Wait no longer, and exit with 124.")
def command(jobs: tuple[str, ...], timeout: float | None) -> None:
    """Wait until jobs have ended, and exit as they did: with the exit code of the first that failed.

    A job that a signal ended counts as 128 and the signal's number, one that exceeded its time limit as 124. If the
    router or this command fails, the exit code is 125. Restarts of the router do not end the wait.

    \b
    Examples:
      prouter wait build && prouter cp build:result.csv .
      prouter wait --timeout 10m 4f3a
    """
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with connect(LONG) as router:
            infos = [
                job.wait(None if end is None else max(0.0, end - time.monotonic()))
                for job in find_jobs(router, list(jobs))
            ]
    except TimedOut as error:
        raise Failure(describe(error), Exit.TIMED_OUT) from error
    except RouterError as error:
        raise Failure(describe(error), Exit.NOT_THE_JOB) from error
    except Failure as error:
        raise Failure(error.message, Exit.NOT_THE_JOB) from error
    unstarted = [info.uid for info in infos if not info.ended]
    emit_jobs(infos)
    if unstarted:
        raise Failure(f"job '{unstarted[0]}' was not started: there is nothing to wait for", Exit.NOT_THE_JOB)
    raise SystemExit(next((code for code in map(of_job, infos) if code), 0))
