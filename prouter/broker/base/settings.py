"""Configuration of the broker's state machines, and the bounds that they keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Bounds", "Settings"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on what waits, so that an overload stays short and cheap. Calls beyond them fail at once with 503.

    Attributes:
        waits: parked waits of all workers together.
        calls: calls of workers that are being carried out.
        link_calls: calls to one agent without a reply, and creations under way.
        dials: agents being dialled.
        hellos: HELLOs of unauthenticated connections that are read per second.
        heartbeats: heartbeats of agents per second; with so many agents that there would be more, each asks less often.
        frames: control frames per second from one agent; a burst may have four times as many.
        control_bytes: bytes of control frames per second from one agent; an agent that sends more is read more slowly.
        connection_jobs: jobs of one connection that have not ended.
        connection_bytes: bytes of the records of these jobs.
        history_bytes: bytes of the records of ended jobs.
        overflow: bytes of an agent's routed messages that are dropped, because workers take less than it sends, before
            its path is given up.
        iteration: control frames handled in one event loop iteration; also replies, callbacks and timers.
        hello_bytes: bytes of a HELLO message.
    """

    waits: int = 50_000
    calls: int = 20_000
    link_calls: int = 4_096
    dials: int = 256
    hellos: int = 4_000
    heartbeats: int = 2_000
    frames: int = 10_000
    control_bytes: int = 16 * 1024 * 1024
    connection_jobs: int = 50_000
    connection_bytes: int = 64 * 1024 * 1024
    history_bytes: int = 128 * 1024 * 1024
    overflow: int = 1024 * 1024 * 1024
    iteration: int = 100
    hello_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Values of the router's configuration. Durations are in seconds.

    Attributes:
        platform: this host, as `/info` shows it.
        tokens: what agents may present, or of each uid its own; with none, anything goes unless `closed`.
        closed: whether agents need a token, a known key or an invitation in any case.
        max_agents: agents that may be linked, or away, with one token.
        max_absence: how long the broker waits at most for an agent that is away.
        heartbeat: between the heartbeats of agents.
        worker_heartbeat: between the heartbeats of workers.
        hold: how long a call waits for an agent that is away.
        resume_timeout: how long a call in flight waits for its agent to come back, and a reply for the job's record.
        polling_delay: how long a dialled agent without jobs stays linked.
        history: how many ended jobs are kept.
        history_age: how long ended jobs are kept, 0 for ever.
        dial_timeout: how long a create waits for the agent it dials.
        takeover_patience: how long an agent may take to prove that it is alive when another claims its uid.
        return_patience: how long an agent whose connection was closed may take to come back, in addition to the time
            that its jobs outlive it. Then it counts as dead.
        jobs_per_owner: jobs of one owner that have not ended; 0 for any number.
        sandbox_bytes_per_owner: bytes in the sandboxes of one owner's jobs; 0 for any number.
        queue_size: jobs that may wait in the queue; 0 for no queue.
        queue_reserve_after: how long a job is passed over in the queue before an agent is kept free for it.
        workers_return: how long workers of an earlier broker may take to come back after the start.
    """

    uid: str
    name: str
    platform: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] | dict[str, str] = ()
    closed: bool = False
    max_agents: int = 32_768
    max_absence: float = 7 * 86_400.0
    heartbeat: float = 2.0
    worker_heartbeat: float = 2.0
    hold: float = 10.0
    resume_timeout: float = 30.0
    polling_delay: float = 10.0
    history: int = 100_000
    history_age: float = 0.0
    dial_timeout: float = 10.0
    takeover_patience: float = 1.0
    return_patience: float = 5.0
    jobs_per_owner: int = 0
    sandbox_bytes_per_owner: int = 0
    queue_size: int = 10_000
    queue_reserve_after: float = 60.0
    workers_return: float = 3.0
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def auth(self) -> dict[str, str]:
        """Uid and name of the router, as peers see it."""
        return {"uid": self.uid, "name": self.name}
