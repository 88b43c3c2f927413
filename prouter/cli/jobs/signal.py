"""``prouter signal``: sends signals to jobs."""

from __future__ import annotations

import signal as signals

import click
from click.shell_completion import CompletionItem

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_jobs
from prouter.cli.views.jobs import emit_jobs

__all__ = ["command"]

_NAMES = [one.name for one in signals.Signals]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    wanted = incomplete.upper().removeprefix("SIG")
    names = [name.removeprefix("SIG") for name in _NAMES if name.removeprefix("SIG").startswith(wanted)]
    return [*map(CompletionItem, names), *complete_jobs(ctx, param, incomplete)]


@click.command("signal", cls=OutputCommand)
@click.argument("words", metavar="JOB... SIGNAL", nargs=-1, required=True, shell_complete=_complete)
@click.option("-s", "--signal", "name", metavar="SIGNAL", help="The signal, if it is not the last word.")
def command(words: tuple[str, ...], name: str | None) -> None:
    """Send a signal to the first process of jobs, as kill does: TERM, SIGUSR1, 10, RTMIN+3 ...

    \b
    Examples:
      prouter signal web HUP
      prouter signal -s USR1 4f3a 9b21
    """
    jobs, signal = (list(words), name) if name else (list(words[:-1]), words[-1])
    if not jobs:
        raise click.UsageError("name a job and a signal, such as: prouter signal web HUP")
    if signal.isdigit():
        known = {str(int(one)): one.name for one in signals.Signals}
        if signal not in known:
            raise click.UsageError(f"{signal} is no signal's number")
        signal = known[signal]
    with connect() as router:
        emit_jobs([job.signal(signal) for job in find_jobs(router, jobs)])
