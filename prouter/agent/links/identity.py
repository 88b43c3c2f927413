"""The agent's identity, as routers and the control API see it: uid, name, platform, properties, incarnation."""

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
from prouter.fabric.bounds import MAX_NESTED, MAX_PLATFORM, MAX_PROPERTIES, nested

__all__ = ["Identity", "host_load", "platform_facts"]

_UID_FILE = "uid"
_STORED_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Identity:
    """Identity of one agent process.

    Attributes:
        uid: configured, or random and kept in the state directory.
        name: configured, or the host's.
        incarnation: 32 hex digits, kept for as long as the agent's jobs live; jobs' paths are derived from it.
        process: another text each time an agent starts, even if it finds its jobs again.
        platform: of this machine, as Python's ``platform`` names it.
        properties: configured, for placement.
    """

    uid: str
    name: str
    incarnation: str
    process: str
    platform: dict[str, str]
    properties: dict[str, Any]

    @classmethod
    def of(cls, config: AgentConfig, state_dir: Path, incarnation: str) -> Identity:
        """Return the identity of the agent with this configuration.

        Raises:
            ConfigError: the properties are larger, or nested more deeply, than a router accepts.
        """
        properties = json.dumps(config.properties, default=str)
        if len(properties) > MAX_PROPERTIES:
            raise ConfigError(
                f"properties: {len(properties)} bytes as JSON are more than the {MAX_PROPERTIES} that routers accept; "
                "put long values into a file and its path here"
            )
        if nested(config.properties) > MAX_NESTED:
            raise ConfigError(f"properties: they are nested more than the {MAX_NESTED} levels deep that routers accept")
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
        """Uid and name, as the control API shows them."""
        return {"uid": self.uid, "name": self.name}

    def introduction(self) -> dict[str, Any]:
        """Return the part of HELLO and WELCOME that never changes."""
        return {
            **self.auth,
            "incarnation": self.incarnation,
            "process": self.process,
            "platform": self.platform,
            "properties": self.properties,
            "version": __version__,
        }


def platform_facts() -> dict[str, str]:
    """Return what Python's ``platform`` says of this machine, bounded."""
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
    """Return the runnable processes per core, averaged over a minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _stored_uid(path: Path) -> str:
    """Return the uid that a file keeps; write a new one there if it has none."""
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
