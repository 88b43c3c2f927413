"""``prouter up``: runs a whole router host."""

from __future__ import annotations

import click

from prouter.cli.local.options import configuration_options, key_help, refuse, router_config
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
    """Run a router: the broker and the HTTP workers, under one parent that restarts them.

    Prints "ready control=http://HOST:PORT agents=tcp://HOST:PORT" once both answer. SIGTERM drains the router and ends
    it, SIGHUP reloads the configuration.

    \b
    Examples:
      prouter up
      prouter up --config router.yaml --workers 4 --set control.port=9000
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
