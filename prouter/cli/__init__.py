"""The ``prouter`` command: one module per subcommand, loaded when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from prouter import __version__

__all__ = ["main"]

_COMMANDS = ("agent", "broker", "config", "demo", "up")


class _Lazy(click.Group):
    """Imports a subcommand's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: Any = importlib.import_module(f"prouter.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prouter")
def main() -> None:
    """Distributed job manager and HTTP proxy."""
