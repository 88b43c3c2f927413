"""Who this agent is: its uid and name, and the machine it runs on."""

from __future__ import annotations

import os
import platform
import socket
import uuid
from pathlib import Path
from typing import Any

from prouter.config import AgentConfig

__all__ = ["agent_uid", "host_load", "platform_info"]


def agent_uid(config: AgentConfig, state_dir: Path) -> str:
    """The configured uid, or a random one that is kept in the state directory."""
    if config.identity.uid:
        return config.identity.uid
    file = state_dir / "uid"
    if file.exists():
        kept = file.read_text(encoding="ascii").strip()
        if kept:
            return kept
    fresh = uuid.uuid4().hex
    temporary = file.with_suffix(".new")
    temporary.write_text(fresh + "\n", encoding="ascii")
    temporary.replace(file)
    return fresh


def agent_name(config: AgentConfig) -> str:
    """The configured name, or the host's."""
    return config.identity.name or socket.gethostname()


def platform_info() -> dict[str, str]:
    """The machine, in the words of Python's platform module."""
    info = platform.uname()
    return {
        "system": info.system,
        "node": info.node,
        "release": info.release,
        "version": info.version,
        "machine": info.machine,
        "processor": info.processor,
    }


def host_load() -> float:
    """Runnable processes per core, averaged over a minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def introduction(config: AgentConfig, uid: str, incarnation: str, draining: bool, version: str) -> dict[str, Any]:
    """What the agent tells of itself when it links to a router, without the token."""
    return {
        "uid": uid,
        "name": agent_name(config),
        "incarnation": incarnation,
        "platform": platform_info(),
        "properties": config.properties,
        "version": version,
        "capacity": {"max": config.jobs.max},
        "draining": draining,
    }
