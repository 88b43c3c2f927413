"""``prouter explain``: why a job waits, or why its server does not answer."""

from __future__ import annotations

import json

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import output_kind
from prouter.cli.views.explanations import explain
from prouter.texts import visible

__all__ = ["command"]


@click.command("explain", cls=OutputCommand)
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
def command(job: str) -> None:
    """Say in words why a job waits or ended, or why its server does not answer, and what to do.

    The exit code is 0 if nothing is wrong, and 1 otherwise.

    \b
    Examples:
      prouter explain web
      prouter explain 4f3a -o json
    """
    with connect() as router:
        found = find_job(router, job)
        findings = explain(router, found)
    kind = output_kind()
    if kind in ("json", "jsonl"):
        told = [{"ok": one.ok, "finding": one.text, "do": one.todo} for one in findings]
        click.echo(json.dumps({"job": found.uid, "findings": told}, indent=2 if kind == "json" else None))
    elif kind == "name":
        click.echo(found.uid)
    else:
        for one in findings:
            click.echo(visible(one.text))
            if one.todo:
                click.echo(f"  -> {visible(one.todo)}")
    if not all(one.ok for one in findings):
        raise SystemExit(1)
