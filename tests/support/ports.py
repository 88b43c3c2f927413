"""TCP ports for servers that get theirs before they listen; nobody else takes them meanwhile."""

from __future__ import annotations

from prouter.agent.expose.ports import Port, reserve

__all__ = ["free_port"]

_reserved: list[Port] = []


def free_port() -> int:
    """Return a free port that neither the kernel nor an agent nor another test run picks."""
    port = reserve()
    _reserved.append(port)
    return port.number
