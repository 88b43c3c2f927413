"""``prouter logs``: prints what a job writes."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from datetime import datetime, timedelta

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import output_kind
from prouter.cli.remote.terminals import end_without_reader, write_all
from prouter.client import LogStream

__all__ = ["command"]


class _Since(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A place in a log: how long ago it came, when it came, or the byte."""

    name = "since"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | datetime | timedelta:
        text = str(value)
        if text.isascii() and text.isdigit():
            return int(text)
        with contextlib.suppress(click.UsageError):
            return timedelta(seconds=DURATION.convert(text, param, ctx))
        try:
            return datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            needed = "write 10m for the last ten minutes, or when: 2030-01-31T12:00:00Z (without Z: your local time)"
            self.fail(f"{text!r} is no time; {needed}", param, ctx)


@click.command("logs", cls=OutputCommand)
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
@click.option("-f", "--follow", is_flag=True, help="Continue until the job has ended.")
@click.option("--since", type=_Since(), metavar="TIME", help="Begin with what came in the last 90s, 10m, 24h or 7d, or "
              "since a time (2030-01-31T12:00:00Z), or at a byte: 'next' of -o jsonl.")  # fmt: skip
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="LINES", help="Begin this many lines before the end.")
@click.option("--stderr", "stream", flag_value="stderr", help="The job's stderr instead of its stdout.")
@click.option("--stdout", "stream", flag_value="stdout", default=True, hidden=True)
def command(
    job: str, follow: bool, since: int | datetime | timedelta | None, tail: int | None, stream: str | None
) -> None:
    """Print a job's stdout, or its stderr, byte for byte. A followed log continues over every lost connection.

    With -o jsonl each piece is an object with its 'offset', 'text' (or 'base64', if it is not UTF-8), and 'next', the
    offset at which --since continues.

    \b
    Examples:
      prouter logs -f web
      prouter logs -f --since 10m web
      prouter logs --stderr --tail 20 build
    """
    offset = since if isinstance(since, int) else None
    moment = None if isinstance(since, int) else since
    if offset is not None and tail is not None:
        raise click.UsageError("a byte of --since and --tail exclude each other")
    if follow:
        end_without_reader()
    with connect(LONG) as router:
        found = find_job(router, job)
        with found.logs(stream or "stdout", follow=follow, offset=offset, tail=tail, since=moment) as log:
            if output_kind() in ("json", "jsonl"):
                _print_pieces(log)
            else:
                sys.stdout.flush()
                for piece in log:
                    write_all(1, piece)


def _print_pieces(log: LogStream) -> None:
    for piece in log:
        following = log.offset or 0
        try:
            content = {"text": piece.decode()}
        except UnicodeDecodeError:
            content = {"base64": base64.b64encode(piece).decode()}
        click.echo(json.dumps({"offset": following - len(piece), **content, "next": following}))
        sys.stdout.flush()
