"""What a broker process settles before it starts: its settings, its uid, its keys and who may link."""

from __future__ import annotations

import logging
import platform
import uuid
from collections.abc import Callable
from pathlib import Path

from prouter.broker.access.watcher import AccessWatcher
from prouter.broker.base.settings import Bounds, Settings
from prouter.config import RouterConfig, is_loopback, uses_curve

__all__ = ["settings_of", "watch_access"]

log = logging.getLogger("prouter.broker")

_HISTORY, _HISTORY_BYTES = 100_000, 128 * 1024 * 1024
"""Jobs of a history, and the bytes that so many may take; a shorter history may take as many."""


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
        closed=not is_loopback(config.server.interface),
        max_agents=config.server.max_agents,
        max_absence=config.server.max_absence,
        heartbeat=config.server.heartbeat,
        hold=config.control.hold,
        resume_timeout=config.fabric.resume_timeout,
        return_patience=config.fabric.resume_timeout,
        polling_delay=config.client.polling_delay,
        history=config.jobs.history,
        history_age=config.jobs.history_age,
        jobs_per_owner=config.limits.jobs_per_owner,
        queue_size=config.queue.size,
        queue_reserve_after=config.queue.reserve_after,
        sandbox_bytes_per_owner=config.limits.sandbox_bytes_per_owner,
        bounds=Bounds(history_bytes=max(_HISTORY_BYTES, _HISTORY_BYTES * config.jobs.history // _HISTORY)),
    )


def watch_access(config: RouterConfig, state: Path, wake: Callable[[], None]) -> AccessWatcher:
    """The keys and invitations of a router, watched; says in the log how agents' links are protected.

    Raises:
        ConfigError: a file of theirs is damaged or cannot be read.
    """
    server = config.server
    encrypts = server.enabled and uses_curve(server)
    accept_keys = Path(server.accept_keys).expanduser() if server.accept_keys is not None else None
    watcher = AccessWatcher(state, accept_keys, encrypts=encrypts, wake=wake)
    if server.enabled and server.insecure and not is_loopback(server.interface):
        log.warning(
            "event=links_not_encrypted interface=%s setting=server.insecure text=%r",
            server.interface,
            "tokens, files and the jobs' traffic can be read and changed on the way",
        )
    elif encrypts:
        log.info("event=links_encrypted key=%s", watcher.pair.public)
    return watcher


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
