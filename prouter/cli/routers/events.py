"""``prouter events``: prints changes of jobs and agents as they happen."""

from __future__ import annotations

import json
import sys

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.names import find_job, short
from prouter.cli.remote.output import echo_name, output_kind
from prouter.cli.remote.terminals import end_without_reader
from prouter.cli.views.jobs import result
from prouter.client import Event
from prouter.texts import visible

__all__ = ["command"]


@click.command("events", cls=OutputCommand)
@click.option("--after", type=click.IntRange(min=0), metavar="ID", help="Begin after the event with this id, instead "
              "of now.")  # fmt: skip
@click.option("--job", metavar="JOB", shell_complete=complete_jobs, help="Only changes of this job.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
def command(after: int | None, job: str | None, count: int | None) -> None:
    """Print changes of jobs and agents as they happen, each once, over every lost connection.

    With -o json or jsonl each event is one line with its 'type', 'id' and data.

    \b
    Examples:
      prouter events
      prouter events --after 0 --job web -o jsonl
    """
    end_without_reader()
    with connect(LONG) as router:
        uid = find_job(router, job).uid if job else None
        with router.events(after) as events:
            left = count
            for event in events:
                if uid is not None and event.data.get("job", {}).get("uid") != uid:
                    continue
                _print(event)
                left = None if left is None else left - 1
                if left == 0:
                    return


def _print(event: Event) -> None:
    kind = output_kind()
    if kind in ("json", "jsonl"):
        click.echo(json.dumps({"type": event.type, **event.data, "id": event.id}))
    elif kind == "name":
        echo_name(_uid(event))
    else:
        at = str(event.data.get("at", ""))[:19].replace("T", " ")
        click.echo(f"{at or '-':19}  {event.id if event.id is not None else '-':>8}  {visible(_words(event))}")
    sys.stdout.flush()


def _uid(event: Event) -> str:
    return str(event.data.get("job", event.data.get("agent", {})).get("uid", "-"))


def _words(event: Event) -> str:
    job = event.job
    if job is not None:
        state = "removed" if event.type == "job.removed" else job.state
        return f"job {short(job.uid)} {state}" + (f" {result(job)}" if job.ended else "") + f" {job.name}"
    if event.type == "agent":
        agent = event.data.get("agent", {})
        return f"agent {agent.get('uid', '-')} {event.data.get('change', '-')} {agent.get('name', '')}".rstrip()
    if event.type == "dropped":
        return "some events before this one are missing: 'prouter ps -a' shows how jobs are now"
    return event.type
