"""``prouter share``: links that open one job to people without a token."""

from __future__ import annotations

from datetime import datetime

import click

from prouter.cli.remote.command import RemoteGroup
from prouter.cli.remote.completion import complete_jobs
from prouter.cli.remote.connection import connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure
from prouter.cli.remote.names import find_job
from prouter.cli.remote.output import Column, emit, emit_fields, output_kind
from prouter.client import Share
from prouter.texts import visible

__all__ = ["command"]


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


_COLUMNS: list[Column[Share]] = [
    Column("ID", lambda share: share.id),
    Column("NAME", lambda share: share.name or "-"),
    Column("METHODS", lambda share: share.methods),
    Column("CREATED", lambda share: _moment(share.created)),
    Column("EXPIRES", lambda share: _moment(share.expires)),
]


@click.group("share", cls=RemoteGroup)
def command() -> None:
    """Make, list and revoke links that open one job's server to people without a token.

    \b
    Examples:
      prouter share create web --expires 7d
      prouter share list web
      prouter share revoke web ID
    """


@command.command("create")
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
@click.option("--expires", type=DURATION, metavar="DURATION", help="For how long it is valid, such as 12h or 7d.")
@click.option("--name", metavar="TEXT", help="For whom it is: 'share list' shows it.")
@click.option("--read", "read_only", is_flag=True, help="For looking only: no changes, no WebSockets.")
def create_command(job: str, expires: float | None, name: str | None, read_only: bool) -> None:
    """Make a link to a job and print it. Whoever has it gets in: it is shown this once.

    \b
    Examples:
      prouter share create web --expires 7d --name 'for the review'
      prouter share create report --read -o json
    """
    with connect() as router:
        made = find_job(router, job).share(expires, name=name, methods="read" if read_only else "all")
    if output_kind() == "table":
        click.echo(visible(made.url or ""))
    else:
        emit_fields({}, made.raw, made.id)


@command.command("list")
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
def list_command(job: str) -> None:
    """List the links to a job, without their addresses.

    \b
    Examples:
      prouter share list web
      prouter share list web -o json
    """
    with connect() as router:
        shares = find_job(router, job).shares()
    emit(shares, _COLUMNS, raw=lambda share: share.raw, name=lambda share: share.id)


@command.command("revoke")
@click.argument("job", metavar="JOB", shell_complete=complete_jobs)
@click.argument("identifiers", metavar="ID...", nargs=-1, required=True)
def revoke_command(job: str, identifiers: tuple[str, ...]) -> None:
    """End links to a job, and the connections that were opened with them.

    \b
    Examples:
      prouter share revoke web 3f9a2c01
      prouter share revoke web $(prouter share list web -o name)
    """
    with connect() as router:
        found = find_job(router, job)
        known = {share.id: share for share in found.shares()}
        for identifier in identifiers:
            if identifier not in known:
                raise Failure(
                    f"the job has no link '{identifier}'; 'prouter share list {job}' shows them", Exit.NOT_FOUND
                )
        for identifier in identifiers:
            found.unshare(identifier)
    emit([known[one] for one in identifiers], _COLUMNS, raw=lambda share: share.raw, name=lambda share: share.id)
