"""The ``prouter`` command: one module per subcommand, in a folder per section, imported when it is used."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from prouter import __version__
from prouter.cli.catalogue import COMMANDS, SECTIONS
from prouter.process.command_line import hide_secrets
from prouter.texts import visible

__all__ = ["main"]

_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of SIGINT."""


_PROBES = {"client": "httpx", "server": "gevent"}
"""A package of each extra, by which its absence is noticed."""


_LATER = ("--url", "--token-file", "--context", "-o", "--output")
"""Options of commands that people may put before the command."""


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


class _Lazy(click.Group):
    """Imports a subcommand's module only when that command is used: `ps` need not load the router."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            command: Any = importlib.import_module(entry.module(cmd_name)).command
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] == "prouter":
                raise
            needed = (
                f"'prouter {cmd_name}' needs a package that is not installed ({error.name}): "
                f"pip install 'prouter[{entry.extra}]'"
            )
            raise click.ClickException(needed) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of an unknown one, say which it may be."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            alike = " or ".join(f"'prouter {name}'" for name in get_close_matches(args[0], COMMANDS, 2))
            raise click.UsageError(
                f"there is no command {args[0]!r}" + (f", but {alike}" if alike else ""), ctx
            ) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options without a command as those of ``up``: that is how the original's router is started."""
        if args and args[0].partition("=")[0] in _LATER:
            option = " ".join(args[: 1 if "=" in args[0] else 2])
            raise click.UsageError(f"{args[0]} comes after the command, as in 'prouter ps {option}'", ctx)
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["up", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by what they are about, without importing them."""
        for section in SECTIONS:
            with formatter.section(section):
                rows = [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
                formatter.write_dl(rows, col_max=12)
        for extra, probe in _PROBES.items():
            names = ", ".join(name for name, entry in COMMANDS.items() if entry.extra == extra)
            if not _found(probe):
                with formatter.section("Not installed"):
                    formatter.write_text(f"pip install 'prouter[{extra}]' for {names}")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without importing them."""
        names = [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return names if not incomplete.startswith("-") else click.Command.shell_complete(self, ctx, incomplete)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run a command; errors are one line on stderr."""
        _open_descriptors()
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            status = super().main(args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            raise SystemExit(error.exit_code) from None
        except click.ClickException as error:
            _refuse(error)
        except OSError as error:  # what click prints itself: help, the version
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            _discard(1)
            _refuse(click.ClickException(f"the output cannot be written: {error.strerror}"))
        except click.Abort:
            raise SystemExit(_INTERRUPTED) from None
        raise SystemExit(status if isinstance(status, int) else 0)


def _open_descriptors() -> None:
    """Open what of stdin, stdout and stderr is closed, so that no socket gets its number and the output with it.

    Python has no `sys.stdout` then, which most commands write to.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False))


def _refuse(error: click.ClickException) -> NoReturn:
    message = " ".join(error.format_message().split()) if isinstance(error, click.UsageError) else error.message
    message = visible(message.strip().rstrip("."))
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and context is not None:
        message += f"; see '{context.command_path} --help'"
    try:
        click.echo(f"prouter: {message}", err=True)
    except OSError:  # Nobody reads it, or the disk is full: the exit code still tells.
        _discard(2)
    raise SystemExit(error.exit_code) from None


def _discard(descriptor: int) -> None:
    """Let what stays in a stream's buffer go nowhere, or Python fails to write it at the end and exits with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prouter")
def main() -> None:
    """Distributed job manager and HTTP proxy: interactive jobs on many machines behind one HTTP API.

    \b
    Examples:
      prouter demo                              JupyterLab on this machine, in your browser
      prouter up                                a router
      prouter agent                             an agent for a router on this machine
      prouter run -- python3 -c 'print(1)'      a job: its output, and its exit code
      prouter invite --host router.example.org  the line that links another machine

    prouter COMMAND --help lists a command's options and examples. Commands that use a router find it by --url,
    --context, PROUTER_URL or 'prouter context'; without any of them it is http://127.0.0.1:8888.
    """
    hide_secrets()
