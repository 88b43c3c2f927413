"""Options that several commands share, and how configuration errors end a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click
from pydantic import BaseModel

from prouter.config import AgentConfig, ConfigError, RouterConfig, keys, load_agent, load_router
from prouter.supervisor import EXIT_CONFIG

__all__ = ["agent_config", "configuration_options", "key_help", "refuse", "router_config", "seconds"]

Function = TypeVar("Function", bound=Callable[..., Any])
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LEVELS = ("warning", "debug", "error", "info", "fatal")


def configuration_options(function: Function) -> Function:
    """``--config``, ``--log-level``, ``--connection-debug`` and ``--set``, as the original has them.

    Its ``--log-format`` is taken as well, and said to have no effect.
    """
    for option in (
        click.option("--log-format", hidden=True, expose_value=False, callback=_no_log_format),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set a configuration key; values are "
                     "Python literals, anything else is taken as text. May appear multiple times."),
        click.option("--connection-debug", is_flag=True, help="Log every event of fabric connections."),
        click.option("--log-level", type=click.Choice(LEVELS), help="Output log level."),
        click.option("--config", "file", type=click.Path(dir_okay=False), help="Configuration file (YAML)."),
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
    """Every key of a configuration with its description, for a command's help."""
    lines = ["\b", "Configuration keys:"]
    for key, field in keys(model):
        default = field.get_default(call_default_factory=True)
        lines.append(f"  {key} - {field.description} [default: {'none' if default in (None, '', (), {}) else default}]")
    return "\n".join(lines)


def router_config(file: str | None, sets: Sequence[str], log_level: str | None, *more: str) -> RouterConfig:
    """The router's configuration from the command line. Raises `ConfigError`."""
    return load_router(file or os.environ.get("PROUTER_CONFIG"), _all(sets, log_level, more), os.environ)


def agent_config(
    file: str | None, sets: Sequence[str], log_level: str | None, properties: Sequence[str] = ()
) -> AgentConfig:
    """The agent's configuration from the command line.

    Args:
        properties: of ``--property``, each ``NAME=VALUE``; always texts, whatever they look like.

    Raises:
        ConfigError: something is wrong.
    """
    config = load_agent(file or os.environ.get("PROUTER_CONFIG"), _all(sets, log_level, ()), os.environ)
    given = dict(config.properties)
    for item in properties:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise ConfigError(f"--property: {item!r} is not NAME=VALUE")
        given[name] = value
    return config.model_copy(update={"properties": given})


def refuse(error: ConfigError) -> NoReturn:
    """End the command: its configuration is wrong."""
    for line in str(error).splitlines():
        click.echo(f"prouter: {line}", err=True)
    raise SystemExit(EXIT_CONFIG)


def _all(sets: Sequence[str], log_level: str | None, more: Sequence[str]) -> list[str]:
    return [*sets, *more, *([f"log.level={log_level}"] if log_level else [])]
