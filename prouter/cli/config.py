"""``prouter config``: the effective configuration, every key explained."""

from __future__ import annotations

from typing import Any

import click
import yaml

from prouter.cli.options import agent_config, configuration_options, refuse, router_config
from prouter.config import SECRET_KEYS, AgentConfig, ConfigError, RouterConfig, keys

__all__ = ["command"]


@click.command("config")
@configuration_options
@click.option("--agent", "of_agent", is_flag=True, help="The agent's configuration instead of the router's.")
def command(
    file: str | None, sets: tuple[str, ...], log_level: str | None, connection_debug: bool, of_agent: bool
) -> None:
    """Print the effective configuration as YAML, every key explained; secrets are masked."""
    try:
        config = agent_config(file, sets, log_level) if of_agent else router_config(file, sets, log_level)
    except ConfigError as error:
        refuse(error)
    click.echo(_render(config), nl=False)


def _render(config: RouterConfig | AgentConfig) -> str:
    lines: list[str] = []
    shown: list[str] = []
    for key, field in keys(type(config)):
        value: Any = config.model_dump(mode="json")
        *sections, leaf = key.split(".")
        for depth, section in enumerate(sections):
            value = value[section]
            if shown[: depth + 1] != sections[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
                shown = sections[: depth + 1]
        value = value[leaf]
        if key in SECRET_KEYS and value:
            value = ["***"] * len(value) if isinstance(value, list) else "***"
        indent = "  " * len(sections)
        lines.append(f"{indent}# {field.description}")
        rendered = yaml.safe_dump({leaf: value}, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{indent}{rendered}")
    return "\n".join(lines) + "\n"
