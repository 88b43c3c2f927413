"""``prouter config``: prints the effective configuration with an explanation of every key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import yaml

from prouter.cli.local.options import agent_config, configuration_options, refuse, router_config
from prouter.config import SECRET_KEYS, AgentConfig, ConfigError, RouterConfig, keys, sections

__all__ = ["command"]


@click.command("config")
@configuration_options
@click.option("--agent", "of_agent", is_flag=True, help="The agent's configuration instead of the router's.")
def command(
    file: str | None, sets: tuple[str, ...], log_level: str | None, connection_debug: bool, of_agent: bool
) -> None:
    """Print the effective configuration as YAML, with an explanation of every key. Secrets are masked.

    The output is a configuration file: save it, fill secrets in, and change what you need.

    \b
    Examples:
      prouter config > router.yaml
      prouter config --agent --config agent.yaml --set client.address=router.example.org:8889
    """
    try:
        config = agent_config(file, sets, log_level) if of_agent else router_config(file, sets, log_level)
    except ConfigError as error:
        refuse(error)
    click.echo("\n".join(_render(config)))


def _render(config: RouterConfig | AgentConfig) -> Iterator[str]:
    """Yield the lines of a YAML file that explains each section and key."""
    values = config.model_dump(mode="json")
    purposes = dict(sections(type(config)))
    open_sections: list[str] = []
    for key, field in keys(type(config)):
        *outer, leaf = key.split(".")
        value: Any = values
        for depth, section in enumerate(outer):
            value = value[section]
            if open_sections[: depth + 1] != outer[: depth + 1]:
                indent = "  " * depth
                yield from ([""] if depth == 0 and open_sections else [])
                yield f"{indent}# {purposes['.'.join(outer[: depth + 1])]}"
                yield f"{indent}{section}:"
        yield from ([""] if not outer and open_sections else [])
        open_sections = outer
        indent = "  " * len(outer)
        yield f"{indent}# {field.description}"
        yield f"{indent}{_pair(leaf, _masked(key, value[leaf]))}"


def _masked(key: str, value: Any) -> Any:
    if key not in SECRET_KEYS or not value:
        return value
    if isinstance(value, dict):
        return dict.fromkeys(value, "***")
    return ["***"] * len(value) if isinstance(value, list) else "***"


def _pair(name: str, value: Any) -> str:
    """One line of block YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, allow_unicode=True)
    return f"{name}: {text.removesuffix(chr(10)).removesuffix('...').rstrip()}"
