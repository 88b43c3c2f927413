"""Who this agent is, as it tells routers and its own control API: uid, name, platform, properties, incarnation."""

from __future__ import annotations

import json
import os
import platform
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prouter import __version__
from prouter.config import AgentConfig, ConfigError
from prouter.fabric.bounds import MAX_PLATFORM, MAX_PROPERTIES

__all__ = ["Identity", "host_load", "platform_facts"]

_UID_FILE = "uid"
_STORED_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Identity:
    """See the module's docstring.

    Attributes:
        uid: configured, or random and kept in the state directory.
        name: configured, or the host's.
        incarnation: 32 hex digits; connection uids and with them the jobs' paths are made from it.
        process: another one each time an agent starts, also where that finds its jobs again.
    """

    uid: str
    name: str
    incarnation: str
    process: str
    platform: dict[str, str]
    properties: dict[str, Any]

    @classmethod
    def of(cls, config: AgentConfig, state_dir: Path, incarnation: str) -> Identity:
        """The identity of the agent with this configuration.

        Raises:
            ConfigError: the properties are more than a router takes.
        """
        properties = json.dumps(config.properties, default=str)
        if len(properties) > MAX_PROPERTIES:
            raise ConfigError(
                f"properties: {len(properties)} bytes as JSON, routers take {MAX_PROPERTIES}; put what is long into"
                " a file and its path here"
            )
        facts = platform_facts()
        return cls(
            uid=config.identity.uid or _stored_uid(state_dir / _UID_FILE),
            name=config.identity.name or facts["node"],
            incarnation=incarnation,
            process=uuid.uuid4().hex,
            platform=facts,
            properties=json.loads(properties),
        )

    @property
    def auth(self) -> dict[str, str]:
        """Uid and name, as the control API tells them."""
        return {"uid": self.uid, "name": self.name}

    def introduction(self) -> dict[str, Any]:
        """The part of HELLO and WELCOME that never changes."""
        return {
            **self.auth,
            "incarnation": self.incarnation,
            "process": self.process,
            "platform": self.platform,
            "properties": self.properties,
            "version": __version__,
        }


def platform_facts() -> dict[str, str]:
    """The machine, as Python's ``platform`` names it."""
    facts = platform.uname()
    told = {
        "system": facts.system,
        "node": facts.node,
        "release": facts.release,
        "version": facts.version,
        "machine": facts.machine,
        "processor": facts.processor,
    }
    return {name: text[: MAX_PLATFORM // 64] for name, text in told.items()}


def host_load() -> float:
    """Runnable processes per core, averaged over a minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _stored_uid(path: Path) -> str:
    """The uid kept in a file; a new one is put there first if need be."""
    try:
        stored = path.read_text().strip()
    except FileNotFoundError:
        stored = ""
    if _STORED_UID.fullmatch(stored):
        return stored
    fresh = uuid.uuid4().hex
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(fresh + "\n")
    beside.replace(path)
    return fresh
