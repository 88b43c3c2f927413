"""``prouter broker``: the broker alone, as a service of its own."""

from __future__ import annotations

import os
import signal

import click

from prouter.access.setup import check_access
from prouter.cli.local.options import configuration_options, key_help, refuse, router_config
from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import claim_broker, locate_router
from prouter.process.logging import configure_logging

__all__ = ["command"]


@click.command("broker", epilog=key_help(RouterConfig))
@configuration_options
@click.option("--status-fd", type=int, help="For the supervisor: the descriptor to write the agents' endpoint to.")
@click.option("--bind-port", type=int, help="Port for agents, instead of server.port.")
def command(
    file: str | None,
    sets: tuple[str, ...],
    log_level: str | None,
    connection_debug: bool,
    status_fd: int | None,
    bind_port: int | None,
) -> None:
    """Run the broker alone: agent links and the job table.

    Start the HTTP workers as another service with the same configuration (gunicorn -c gunicorn.conf.py). They find the
    broker through state.run_dir. 'prouter up' runs both.

    Prints "ready agents=tcp://HOST:PORT" once agents can link.

    \b
    Examples:
      prouter broker --config router.yaml
      prouter broker --set state.run_dir=/run/prouter --bind-port 9000
    """
    from prouter.broker.server import run

    supervised, supervisor = status_fd is not None, os.getppid()

    def stop_supervisor() -> None:
        os.kill(supervisor, signal.SIGTERM)

    def ready(endpoint: str) -> None:
        shown = endpoint or "none"
        if status_fd is None:
            click.echo(f"ready agents={shown}")
        else:
            os.write(status_fd, f"{shown}\n".encode())
            os.close(status_fd)

    try:
        config = router_config(file, sets, log_level)
        check_access(config)
        configure_logging(config.log, connection_debug=connection_debug)
        if supervised:
            status = run(locate_router(config), bind_port=bind_port, ready=ready, on_shutdown=stop_supervisor)
        else:
            config, lock = claim_broker(config)
            status = run(config, bind_port=bind_port, ready=ready)
            lock.release()
    except ConfigError as error:
        refuse(error)
    raise SystemExit(status)
