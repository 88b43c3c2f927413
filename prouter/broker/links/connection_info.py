"""Jobs and connections as the HTTP API shows them (docs/http-api.md)."""

from __future__ import annotations

from typing import Any

from prouter.broker.links.hello import SERVER, AgentInfo
from prouter.broker.links.link import Link
from prouter.jobs import INTERNAL_FIELDS, Phase, Reason, State, phase_of, rfc3339
from prouter.resources import UNCOUNTED

__all__ = ["connection_figures", "connection_identity", "job_facts", "job_place"]

_ALIVE = frozenset({Phase.QUEUED, Phase.STARTING, Phase.READY})
_TIMES = ("created_at", "started_at", "finished_at")


def job_facts(wire: dict[str, Any], *, up: bool = True) -> dict[str, Any]:
    """The fields of a record (`JobRecord.to_wire`) that clients see.

    Args:
        up: whether its agent can be reached.
    """
    info = {name: value for name, value in wire.items() if name not in INTERNAL_FIELDS}
    for name in _TIMES:
        moment = info[name]
        if moment is not None:
            info[name] = rfc3339(moment)
    queue = info["queue"]
    if queue is not None and queue["expected_start"] is not None:
        info["queue"] = {**queue, "expected_start": rfc3339(queue["expected_start"])}
    reason = Reason(info["reason"]) if info["reason"] is not None else None
    will_start = wire.get("will_start") is True
    phase = phase_of(State(info["state"]), reason, queued=queue is not None, will_start=will_start)
    if not up and phase in _ALIVE:
        phase = Phase.UNREACHABLE
    info["phase"] = phase.value if phase is not None else None
    info["path"] = path = f"/jobs/{wire['client'] or wire['connection']}/{wire['uid']}"
    info["base_url"] = f"{path}/http/" if wire["endpoint"] is not None else None
    return info


def job_place(*, agent: AgentInfo | None, agent_uid: str, mode: str, router: dict[str, str]) -> dict[str, Any]:
    """The fields of a job that are the same for all jobs of its connection."""
    return {
        "sender": {"direction": "CLIENT" if mode == SERVER else "SERVER", **router},
        "agent": {
            "uid": agent_uid,
            "name": agent.name if agent is not None else "",
            "platform": agent.platform if agent is not None else {},
            "properties": agent.properties if agent is not None else {},
        },
    }


def connection_identity(link: Link) -> dict[str, Any]:
    """The fields of a connection that stay while its agent lives. The token is never among them."""
    return {
        "uid": link.connection,
        "mode": link.mode,
        "peer": {"auth": link.agent, "platform": link.info.platform, "properties": link.info.properties},
        "since": rfc3339(link.since),
        "version": link.info.version,
        "encrypted": link.encrypted,
        "resources": {name: None if has == UNCOUNTED else has for name, has in link.info.resources.items()},
    }


def connection_figures(link: Link, jobs: int) -> dict[str, Any]:
    """The fields of a connection that change."""
    latency = link.latency
    return {
        "latency_ms": round(latency * 1000, 1) if latency is not None else None,
        "load": link.load,
        "jobs": jobs,
        "resources_used": link.used,
        "draining": link.draining,
        "routers": link.routers,
        "pool": link.warm.figures,
        "up": link.up,
    }
