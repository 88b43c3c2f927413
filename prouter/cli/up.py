"""``prouter up``: a whole router host in one command."""

from __future__ import annotations

import click

from prouter.cli.options import configuration_options, key_help, refuse, router_config
from prouter.config import ConfigError, RouterConfig
from prouter.process.logging import configure_logging
from prouter.supervisor import Supervisor

__all__ = ["command"]


@click.command("up", epilog=key_help(RouterConfig))
@configuration_options
@click.option("--workers", type=click.IntRange(min=1), help="Number of worker processes (control.workers).")
def command(
    file: str | None, sets: tuple[str, ...], log_level: str | None, connection_debug: bool, workers: int | None
) -> None:
    """Run broker and HTTP workers of a router under one parent.

    Prints "ready control=http://HOST:PORT agents=tcp://HOST:PORT" once both answer.
    """
    more = [f"control.workers={workers}"] if workers else []

    def load() -> RouterConfig:
        return router_config(file, sets, log_level, *more)

    try:
        configure_logging(load().log, connection_debug=connection_debug)
        status = Supervisor(load, click.echo, connection_debug=connection_debug).run()
    except ConfigError as error:
        refuse(error)
    raise SystemExit(status)
