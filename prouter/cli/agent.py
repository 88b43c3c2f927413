"""``prouter agent``: runs jobs on this machine for one or more routers."""

from __future__ import annotations

import click

from prouter.cli.options import agent_config, configuration_options, key_help, refuse
from prouter.config import AgentConfig, ConfigError, check_exposure
from prouter.logging_setup import configure_logging

__all__ = ["command"]


@click.command("agent", epilog=key_help(AgentConfig))
@configuration_options
def command(file: str | None, sets: tuple[str, ...], log_level: str | None, connection_debug: bool) -> None:
    """Run jobs on this machine for one or more routers.

    Prints "ready agent=UID" once it is linked to a router.
    """
    from prouter.agent.server import run

    try:
        config = agent_config(file, sets, log_level)
        check_exposure(config)
        configure_logging(config.log, connection_debug=connection_debug)
        status = run(config, ready=lambda uid: click.echo(f"ready agent={uid}"))
    except ConfigError as error:
        refuse(error)
    raise SystemExit(status)
