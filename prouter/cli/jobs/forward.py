"""``prouter forward``: a port of a job as a local one."""

from __future__ import annotations

import ipaddress

import click

from prouter.cli.moving.forwarding import Forwarder
from prouter.cli.remote.command import RemoteCommand
from prouter.cli.remote.completion import complete_job_paths
from prouter.cli.remote.connection import LONG, chosen, connect
from prouter.cli.remote.failures import Failure, note
from prouter.cli.remote.names import find_job

__all__ = ["command"]


@click.command("forward", cls=RemoteCommand)
@click.argument("place", metavar="JOB[:PORT]", shell_complete=complete_job_paths)
@click.argument("local", metavar="[LOCALPORT]", required=False, type=click.IntRange(0, 65535))
@click.option("--bind", default="127.0.0.1", metavar="ADDRESS", help="Local address to listen on [default: 127.0.0.1].")
def command(place: str, local: int | None, bind: str) -> None:
    """Listen on a local TCP port, and connect whoever connects with a port on which the job listens.

    Without PORT it is the job's own server. Without LOCALPORT it is the same number, or a free one; 0 is free, too. The
    port stays open over restarts of the router and a sleeping laptop: connections are made anew when they are needed.
    Ctrl-C ends it.

    \b
    Examples:
      prouter forward web 8080
      prouter forward db:5432
      prouter forward train:6006 0
    """
    job, _, port = place.partition(":")
    if port and not port.isalnum():
        raise click.BadParameter(f"{port!r} is neither a port nor the name of one", param_hint="JOB[:PORT]")
    wanted = local if local is not None else int(port) if port.isdigit() else 0
    choice = chosen()
    with connect(LONG, choice) as router:
        found = find_job(router, job)
        info = found.info()
    if not port and info.state == "RUNNING" and info.base_url is None:
        raise Failure(f"job {job!r} has no server; name a port on which it listens: 'prouter forward {job}:PORT'")
    forwarder = Forwarder(choice.url, choice.token, choice.ca, f"{found.path}/tcp/{port or 'http'}", (bind, wanted))
    host, number = forwarder.address
    if not ipaddress.ip_address(host).is_loopback:
        note(f"whoever reaches {host}:{number} can use this port of the job, as you")
    click.echo(f"forwarding {host}:{number} to {place}")
    forwarder.serve()
