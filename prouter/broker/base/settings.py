"""What the broker's state machines need to know of the configuration, and the bounds they keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Bounds", "Settings"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that keep an overload short and cheap; what is over them is answered with a fast 503.

    Attributes:
        waits: parked waits, all workers together.
        calls: worker calls being carried out.
        link_calls: calls to one agent without an answer.
        dials: agents being dialled.
        hellos: introductions looked at per second.
        frames: control frames per second from one agent, four seconds of them at once.
        control_bytes: bytes of control frames per second from one agent; who sends more is read more slowly.
        connection_jobs: jobs of one connection that have not ended.
        connection_bytes: bytes of their records.
        history_bytes: bytes of the records of ended jobs.
        overflow: bytes of routed messages of an agent that are dropped before its path is given up, since workers take
            less than it sends.
        turn: control frames handled in one turn of the loop, and answers given, callbacks and timers run at once.
        hello_bytes: size of an introduction.
    """

    waits: int = 50_000
    calls: int = 20_000
    link_calls: int = 4_096
    dials: int = 256
    hellos: int = 4_000
    frames: int = 10_000
    control_bytes: int = 16 * 1024 * 1024
    connection_jobs: int = 50_000
    connection_bytes: int = 64 * 1024 * 1024
    history_bytes: int = 128 * 1024 * 1024
    overflow: int = 1024 * 1024 * 1024
    turn: int = 100
    hello_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Values of the router's configuration; durations in seconds.

    Attributes:
        platform: this host, as `/info` shows it.
        tokens: what agents may present, or of each uid its own; with none, anything goes unless `closed`.
        closed: whether agents need a token, a known key or an invitation in any case.
        max_agents: agents that may be linked or waited for with one token.
        max_absence: how long an agent that is away is waited for, whatever it says.
        heartbeat: of agent links.
        worker_heartbeat: of workers.
        hold: how long a call waits for an agent that is away.
        resume_timeout: how long a call in flight waits for its agent to come back.
        polling_delay: how long a dialled agent without jobs is kept linked.
        history: how many ended jobs are kept.
        history_age: how long ended jobs are kept, 0 for ever.
        dial_timeout: how long a create waits for the agent it dials.
        takeover_patience: how long an agent may take to prove that it is alive when another claims its uid.
        return_patience: how long an agent whose connection was closed may take to come back before it counts as dead,
            on top of the time it says its jobs outlive it.
        workers_return: after the start, how long workers of the broker before may take to come back.
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
    workers_return: float = 3.0
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def auth(self) -> dict[str, str]:
        """The router as others see it."""
        return {"uid": self.uid, "name": self.name}
