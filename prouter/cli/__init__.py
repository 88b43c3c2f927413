"""The ``prouter`` command: one module per subcommand, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from prouter import __version__
from prouter.process.command_line import hide_secrets

__all__ = ["main"]

_COMMANDS = ("agent", "broker", "config", "demo", "invite", "keygen", "token", "up")


class _Lazy(click.Group):
    """Imports a subcommand's module only when that command is used: the broker need not load JupyterLab's client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: Any = importlib.import_module(f"prouter.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options without a command as those of ``up``: that is how the original's router is started."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["up", *args]
        return super().parse_args(ctx, args)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prouter")
def main() -> None:
    """Distributed job manager and HTTP proxy: interactive jobs on many machines behind one HTTP API.

    \b
    Examples:
      prouter demo                              JupyterLab on this machine, in your browser
      prouter up                                a router
      prouter agent                             an agent for a router on this machine
      prouter invite --host router.example.org  the line that links another machine

    prouter COMMAND --help lists a command's options and configuration keys.
    """
    hide_secrets()
