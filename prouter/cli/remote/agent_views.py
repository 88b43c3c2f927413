"""Agents as tables show them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from prouter.cli.remote.durations import age
from prouter.cli.remote.output import Column, emit
from prouter.client import Connection

__all__ = ["AGENT_COLUMNS", "emit_agents", "state"]


def state(connection: Connection) -> str:
    """Return ``up``, ``draining`` or ``lost``."""
    if not connection.up:
        return "lost"
    return "draining" if connection.draining else "up"


def _properties(connection: Connection) -> str:
    values = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in sorted(
        connection.properties.items()))  # fmt: skip
    return ",".join(f"{name}={value}" for name, value in values) or "-"


AGENT_COLUMNS: list[Column[Connection]] = [
    Column("UID", lambda one: one.agent.uid),
    Column("NAME", lambda one: one.agent.name or "-"),
    Column("STATE", state, lambda one: {"up": "green", "draining": "yellow"}.get(state(one), "red")),
    Column("JOBS", lambda one: str(one.jobs)),
    Column("LOAD", lambda one: "-" if one.load is None else f"{one.load:.2f}"),
    Column("LATENCY", lambda one: "-" if one.latency_ms is None else f"{one.latency_ms:.1f}ms"),
    Column("LINKED", lambda one: age(one.since)),
    Column("VERSION", lambda one: one.version or "-"),
    Column("PROPERTIES", _properties),
]


def emit_agents(connections: Iterable[Connection]) -> None:
    """Print agents in the form that ``-o`` names."""
    emit(connections, AGENT_COLUMNS, raw=lambda one: one.raw, name=lambda one: one.agent.uid)
