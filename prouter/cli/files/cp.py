"""``prouter cp``: copies files between this machine and jobs."""

from __future__ import annotations

import json
import sys

import click

from prouter.cli.moving.transfers import Place, from_job, place_of, to_job
from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_job_paths
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import size
from prouter.cli.remote.failures import note
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import output_kind

__all__ = ["command"]


@click.command("cp", cls=OutputCommand)
@click.argument("source", metavar="SRC", shell_complete=complete_job_paths)
@click.argument("target", metavar="DST", shell_complete=complete_job_paths)
def command(source: str, target: str) -> None:
    """Copy a file or a directory to a job's sandbox (DST is JOB:PATH) or from it (SRC is JOB:PATH).

    As with cp -r, a directory that exists gets SRC into it, and DST names the copy otherwise; SRC/. is what is in a
    directory. - is stdin or stdout: a file as it is, a directory as tar. A local name with a colon begins with ./

    A transfer that breaks begins again or continues; a file appears once it is complete.

    \b
    Examples:
      prouter cp model.json build:input/
      prouter cp build:results ./results-4
      prouter cp build:report.csv - | head
    """
    here, there = _places(source, target)
    with connect(LONG) as router:
        remote = there if there.job is not None else here
        assert remote.job is not None
        job = find_job(router, remote.job)
        copy = to_job if there.job is not None else from_job
        done = copy(job, here.path, there.path)
    if there.path == "-" and there.job is None:
        return
    _report(done.files, done.bytes, done.skipped)


def _places(source: str, target: str) -> tuple[Place, Place]:
    here, there = place_of(source), place_of(target)
    if (here.job is None) == (there.job is None):
        what = "neither of them is" if here.job is None else "both are"
        raise click.UsageError(f"one of SRC and DST is JOB:PATH, and {what}: prouter cp data.csv JOB:data.csv")
    return here, there


def _report(files: int, count: int, skipped: tuple[str, ...]) -> None:
    for name in skipped:
        note(f"left out, because it is a device, or a link that leads elsewhere: {name}")
    kind = output_kind()
    if kind in ("json", "jsonl"):
        click.echo(json.dumps({"files": files, "bytes": count, "skipped": list(skipped)}))
    elif kind == "table" and sys.stderr.isatty():
        note(f"{files} file{'s' if files != 1 else ''}, {size(count)}")
