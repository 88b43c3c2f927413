"""What a broker process settles before it starts: its settings, its uid, how many connections it may have."""

from __future__ import annotations

import platform
import uuid
from pathlib import Path

from prouter.broker.base.settings import Settings
from prouter.config import RouterConfig

__all__ = ["settings_of"]


def settings_of(config: RouterConfig, state: Path) -> Settings:
    """What the broker needs of `config`; `state` is the state directory."""
    host = platform.uname()
    return Settings(
        uid=config.identity.uid or _own_uid(state),
        name=config.identity.name or "router",
        platform={
            "system": host.system,
            "node": host.node,
            "release": host.release,
            "version": host.version,
            "machine": host.machine,
            "processor": host.processor,
        },
        tokens=config.server.accept_tokens,
        max_agents=config.server.max_agents,
        max_absence=config.server.max_absence,
        heartbeat=config.server.heartbeat,
        hold=config.control.hold,
        resume_timeout=config.fabric.resume_timeout,
        return_patience=config.fabric.resume_timeout,
        polling_delay=config.client.polling_delay,
        history=config.jobs.history,
        history_age=config.jobs.history_age,
    )


def _own_uid(state: Path) -> str:
    """The uid of a router that was given none: made once per state directory."""
    path = state / "router.uid"
    if path.exists():
        known = path.read_text(encoding="utf-8").strip()
        if known:
            return known
    made = uuid.uuid4().hex
    temporary = path.with_suffix(".new")
    temporary.write_text(made + "\n", encoding="utf-8")
    temporary.replace(path)
    return made
