"""Public views: job info as http-api.md's clients know it, and the list of connections."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from prouter.broker.hello import SERVER, AgentInfo
from prouter.broker.links import Link
from prouter.jobs import JobRecord

__all__ = ["connection_figures", "connection_identity", "job_info", "rfc3339"]

_INTERNAL = ("connection", "revision", "endpoint", "path_mode")
_TIMES = ("created_at", "started_at", "finished_at")


def rfc3339(seconds: float | None) -> str | None:
    """A time of day, UTC with milliseconds, as RFC 3339 writes it."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_info(
    record: JobRecord, *, agent: AgentInfo | None, agent_uid: str, mode: str, router: dict[str, str], confirmed: bool
) -> dict[str, Any]:
    """A job as clients see it."""
    info = record.to_wire()
    for name in _INTERNAL:
        del info[name]
    for name in _TIMES:
        info[name] = rfc3339(info[name])
    info["sender"] = {"direction": "CLIENT" if mode == SERVER else "SERVER", **router}
    info["path"] = record.path
    info["agent"] = {
        "uid": agent_uid,
        "name": agent.name if agent is not None else "",
        "platform": agent.platform if agent is not None else {},
        "properties": agent.properties if agent is not None else {},
    }
    info["confirmed"] = confirmed
    return info


def connection_identity(link: Link) -> dict[str, Any]:
    """What clients see of a link that does not change while its agent lives. Never its token."""
    return {
        "uid": link.connection,
        "mode": link.mode,
        "peer": {"auth": link.agent, "platform": link.info.platform, "properties": link.info.properties},
        "since": rfc3339(link.since),
        "version": link.info.version,
    }


def connection_figures(link: Link, jobs: int) -> dict[str, Any]:
    """What clients see of a link that changes."""
    latency = link.latency
    return {
        "latency_ms": round(latency * 1000, 1) if latency is not None else None,
        "load": link.load,
        "jobs": jobs,
        "draining": link.draining,
        "up": link.up,
    }
