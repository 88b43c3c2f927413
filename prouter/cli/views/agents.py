"""Agents as tables show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from prouter.cli.remote.durations import age
from prouter.cli.remote.names import find_agent
from prouter.cli.remote.output import Column, emit
from prouter.client import Connection, Router

__all__ = ["AGENT_COLUMNS", "change_agents", "emit_agents", "state"]


def state(connection: Connection) -> str:
    """Return ``up``, ``draining`` or ``lost``."""
    if not connection.up:
        return "lost"
    return "draining" if connection.draining else "up"


def _properties(connection: Connection) -> str:
    values = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in sorted(
        connection.properties.items()))  # fmt: skip
    return ",".join(f"{name}={value}" for name, value in values) or "-"


def _ready(connection: Connection) -> str:
    """Return how many jobs of each template are ready, of how many."""
    pool = sorted(connection.pool.items())
    return ",".join(f"{name}={one.get('ready')}/{one.get('size')}" for name, one in pool) or "-"


AGENT_COLUMNS: list[Column[Connection]] = [
    Column("UID", lambda one: one.agent.uid),
    Column("NAME", lambda one: one.agent.name or "-"),
    Column("STATE", state, lambda one: {"up": "green", "draining": "yellow"}.get(state(one), "red")),
    Column("JOBS", lambda one: str(one.jobs)),
    Column("LOAD", lambda one: "-" if one.load is None else f"{one.load:.2f}"),
    Column("LATENCY", lambda one: "-" if one.latency_ms is None else f"{one.latency_ms:.1f}ms"),
    Column("LINKED", lambda one: age(one.since)),
    Column("VERSION", lambda one: one.version or "-"),
    Column("READY", _ready),
    Column("PROPERTIES", _properties),
]


def emit_agents(connections: Iterable[Connection]) -> None:
    """Print agents in the form that ``-o`` names."""
    emit(connections, AGENT_COLUMNS, raw=lambda one: one.raw, name=lambda one: one.agent.uid)


def change_agents(router: Router, agents: Iterable[str], change: Callable[[str], object]) -> None:
    """Change agents, all of which have to exist before the first is changed, and print them as they are then.

    Args:
        agents: names or uids, as `find_agent` takes them.
        change: is called with the uid of each agent's connection.
    """
    uids = [find_agent(router, agent).uid for agent in agents]
    for uid in uids:
        change(uid)
    emit_agents([one for one in router.connections() if one.uid in uids])
