"""``prouter agent``: runs jobs on this machine for one or more routers."""

from __future__ import annotations

import click

from prouter.cli.local.options import agent_config, configuration_options, key_help, refuse
from prouter.config import AgentConfig, ConfigError, check_exposure
from prouter.keys.join_url import parse_join_url
from prouter.process.logging import configure_logging

__all__ = ["command"]


@click.command("agent", epilog=key_help(AgentConfig))
@configuration_options
@click.option("--property", "properties", multiple=True, metavar="NAME=VALUE", help="Set a property of this agent to a "
              "text. May be given several times.")  # fmt: skip
@click.option("--join", metavar="URL", help="Join the router whose 'prouter invite' printed this URL. The agent "
              "remembers it: later starts need no --join.")  # fmt: skip
def command(
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    properties: tuple[str, ...],
    join: str | None,
) -> None:
    """Run jobs on this machine for one or more routers.

    Prints "ready agent=UID" once it is linked to a router.

    \b
    Examples:
      prouter agent --join 'prouter://router.example.org:8889/?key=...&token=...'
      prouter agent --set client.address=router.example.org:8889 --property gpu=a100
    """
    from prouter.agent.server import run

    try:
        config = agent_config(file, sets, log_level, properties)
        check_exposure(config)
        configure_logging(config.log, connection_debug=connection_debug)
        url = parse_join_url(join) if join is not None else None
        if url is not None and not config.client.enabled:
            raise ConfigError("--join: client.enabled is off, so that the agent dials no router; switch it on")
        status = run(config, join=url, ready=lambda uid: click.echo(f"ready agent={uid}"))
    except ConfigError as error:
        refuse(error)
    raise SystemExit(status)
