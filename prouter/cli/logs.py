"""``prouter logs``: prints what a job writes."""

from __future__ import annotations

import base64
import json
import sys

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import output_kind
from prouter.cli.remote.terminals import end_without_reader, write_all
from prouter.client import LogStream

__all__ = ["command"]


class _Byte(click.IntRange):
    """A position in a log."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{text!r} is no position: logs have no times, only bytes; --tail counts lines", param, ctx)
        return int(text)


_BYTE = _Byte(min=0)


@click.command("logs", cls=OutputCommand)
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
@click.option("-f", "--follow", is_flag=True, help="Continue until the job has ended.")
@click.option("--since", type=_BYTE, metavar="BYTE", help="Begin at this byte of the log: 'next' of "
              "-o jsonl. Logs have no times.")  # fmt: skip
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="LINES", help="Begin this many lines before the end.")
@click.option("--stderr", "stream", flag_value="stderr", help="The job's stderr instead of its stdout.")
@click.option("--stdout", "stream", flag_value="stdout", default=True, hidden=True)
def command(job: str, follow: bool, since: int | None, tail: int | None, stream: str | None) -> None:
    """Print a job's stdout, or its stderr, byte for byte. A followed log continues over every lost connection.

    With -o jsonl each piece is an object with its 'offset', 'text' (or 'base64', if it is not UTF-8), and 'next', the
    offset at which 'prouter logs --since' continues.

    \b
    Examples:
      prouter logs -f web
      prouter logs --stderr --tail 20 build
    """
    if since is not None and tail is not None:
        raise click.UsageError("--since and --tail exclude each other")
    if follow:
        end_without_reader()
    with connect(LONG) as router:
        found = find_job(router, job)
        with found.logs(stream or "stdout", follow=follow, offset=since, tail=tail) as log:
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
