"""``prouter open``: opens a job's server in the browser."""

from __future__ import annotations

import click

from prouter.cli.remote.command import RemoteCommand
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import connect
from prouter.cli.remote.names import find_job
from prouter.cli.running.browsers import address, open_in_browser
from prouter.texts import visible

__all__ = ["command"]


@click.command("open", cls=RemoteCommand)
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
@click.option("--path", default="", help="Begin at this path and query below the job's address.")
@click.option("--print", "print_only", is_flag=True, help="Print the address instead of opening it.")
def command(job: str, path: str, print_only: bool) -> None:
    """Open the page of a job in your browser, without a token in the browser.

    Where the router asks for tokens, the address lets in whoever opens it within a minute.

    \b
    Examples:
      prouter open web
      prouter open --print web
      prouter open --path 'reports/today.html?page=2' web
    """
    with connect() as router:
        url = address(find_job(router, job), path)
    if print_only or not open_in_browser(url):
        click.echo(visible(url))
