"""Options that several commands share, and how configuration errors end a command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any, NoReturn, TypeVar

import click
from pydantic import BaseModel

from prouter.cli.remote.output import KINDS, keep_output
from prouter.config import AgentConfig, ConfigError, RouterConfig, keys, load_agent, load_router
from prouter.supervisor import EXIT_CONFIG

__all__ = [
    "GroupOptions",
    "agent_config",
    "configuration_options",
    "key_help",
    "output_options",
    "refuse",
    "router_config",
    "seconds",
]

Function = TypeVar("Function", bound=Callable[..., Any])
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LEVELS = ("warning", "debug", "error", "info", "fatal")


def configuration_options(function: Function) -> Function:
    """Add ``--config``, ``--log-level``, ``--connection-debug`` and ``--set``, as the original has them.

    The original's ``--log-format`` is accepted, with a warning that it has no effect.
    """
    for option in (
        click.option("--log-format", hidden=True, expose_value=False, callback=_no_log_format),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set a configuration key. A value is "
                     "a Python literal, or else text. May be given several times."),
        click.option("--connection-debug", is_flag=True, help="Log every event of connections between the processes."),
        click.option("--log-level", type=click.Choice(LEVELS), help="Output log level."),
        click.option("--config", "file", type=click.Path(dir_okay=False), help="Configuration file (YAML)."),
    ):  # fmt: skip
        function = option(function)
    return function


def output_options(function: Function) -> Function:
    """Add ``-o``, whose value `output_kind` returns, and ``--json``, which is short for ``-o json``."""

    def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            keep_output(context, parameter, "json")

    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=keep, help="Print JSON, as -o json."),
        click.option("-o", "--output", type=click.Choice(KINDS), default=KINDS[0], show_default=True,
                     expose_value=False, callback=keep_output, help="Form of the output."),
    ):  # fmt: skip
        function = option(function)
    return function


def _no_log_format(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        click.echo("prouter: --log-format has no effect; log.format chooses between text and json", err=True)


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """Read a duration such as ``90s``, ``30m``, ``24h`` or ``7d``: a click callback.

    Raises:
        click.BadParameter: it is none.
    """
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise click.BadParameter(f"{value!r} is no duration; write it like 90s, 30m, 24h or 7d")
    return int(number) * _UNITS[unit]


def key_help(model: type[BaseModel]) -> str:
    """Return every key of a configuration with its description, for a command's help: as wide as click makes help."""
    lines = ["\b", "Configuration keys:"]
    width = max(40, min(80, shutil.get_terminal_size().columns) - 4)
    for key, field in keys(model):
        default = field.get_default(call_default_factory=True)
        text = f"{key} - {field.description} [default: {'none' if default in (None, '', (), {}) else default}]"
        lines += wrap(text, width, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join(lines)


def router_config(file: str | None, sets: Sequence[str], log_level: str | None, *more: str) -> RouterConfig:
    """Load the router's configuration with the options of the command line.

    Raises:
        ConfigError: something is wrong.
    """
    return load_router(file or os.environ.get("PROUTER_CONFIG"), _all(sets, log_level, more), os.environ)


def agent_config(
    file: str | None, sets: Sequence[str], log_level: str | None, properties: Sequence[str] = ()
) -> AgentConfig:
    """Load the agent's configuration with the options of the command line.

    Args:
        properties: values of ``--property``, each ``NAME=VALUE``. They stay texts, even if they look like numbers.

    Raises:
        ConfigError: something is wrong.
    """
    from prouter.runners.registry import agent_model

    file = file or os.environ.get("PROUTER_CONFIG")
    config = load_agent(file, _all(sets, log_level, ()), os.environ, agent_model())
    given = dict(config.properties)
    for item in properties:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise ConfigError(f"--property: {item!r} is not NAME=VALUE, such as gpu=a100")
        given[name] = value
    return config.model_copy(update={"properties": given})


def refuse(error: ConfigError) -> NoReturn:
    """Print what is wrong with the configuration, and exit with status 2."""
    for line in str(error).splitlines():
        click.echo(f"prouter: {line}", err=True)
    raise SystemExit(EXIT_CONFIG)


def _all(sets: Sequence[str], log_level: str | None, more: Sequence[str]) -> list[str]:
    return [*sets, *more, *([f"log.level={log_level}"] if log_level else [])]


class GroupOptions:
    """What was given after a command that has subcommands, such as ``prouter token --config FILE list``.

    The subcommands take the same options; what is given after them counts for more.
    """

    def __init__(self, file: str | None, sets: tuple[str, ...], log_level: str | None) -> None:
        self._given = (file, sets, log_level)

    def config(self, file: str | None, sets: tuple[str, ...]) -> RouterConfig:
        """Return the router's configuration.

        Raises:
            ConfigError: it cannot be read, or is wrong.
        """
        first_file, first_sets, log_level = self._given
        return router_config(file or first_file, [*first_sets, *sets], log_level)
