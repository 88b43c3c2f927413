"""The ``prouter`` command: one module per subcommand, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from prouter import __version__
from prouter.process.command_line import hide_secrets

__all__ = ["main"]

_COMMANDS = {
    "agent": "server",
    "broker": "server",
    "config": "server",
    "demo": "demo",
    "invite": "server",
    "keygen": "server",
    "token": "server",
    "up": "server",
}
"""All subcommands, each with the extra of the package that has what it imports."""


class _Lazy(click.Group):
    """Imports a subcommand's module only when that command is used: the broker need not load JupyterLab's client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            command: Any = importlib.import_module(f"prouter.cli.{cmd_name}").command
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "prouter":
                raise
            return _not_installed(cmd_name, _COMMANDS[cmd_name], error.name or "")
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options without a command as those of ``up``: that is how the original's router is started."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["up", *args]
        return super().parse_args(ctx, args)


def _not_installed(name: str, extra: str, missing: str) -> click.Command:
    """Return a command that says what to install, whatever its arguments are."""

    def refuse(_arguments: tuple[str, ...]) -> None:
        said = f"'prouter {name}' needs a package that is not installed ({missing}): pip install 'prouter[{extra}]'"
        raise click.ClickException(said)

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["_arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=f"Not installed: pip install 'prouter[{extra}]'",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


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
