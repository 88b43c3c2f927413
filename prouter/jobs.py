"""Job states and records: what an agent says of its jobs, as it crosses the fabric and is stored.

Standard library only; used by agent, broker and API alike. Times are seconds since the epoch (float, UTC), sizes bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import lru_cache
from typing import Any

__all__ = ["ENDED", "JobRecord", "Reason", "State", "rfc3339"]


class State(str, Enum):
    """Where a job is in its life. NEW → PENDING → RUNNING → FINISHED; CLOSED once removed."""

    NEW = "NEW"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    CLOSED = "CLOSED"


ENDED = frozenset({State.FINISHED, State.CLOSED})


class Reason(str, Enum):
    """Why a job ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CPU = "cpu"
    PROCESSES = "processes"
    SANDBOX = "sandbox"
    STOPPED = "stopped"
    REMOVED = "removed"
    AGENT_LOST = "agent_lost"
    START_FAILED = "start_failed"


_TOLD = {
    Reason.TIMEOUT: "its time was up",
    Reason.MEMORY: "it used more memory than it may",
    Reason.CPU: "it used more CPU time than it may",
    Reason.PROCESSES: "it had more processes than it may",
    Reason.SANDBOX: "its sandbox grew over its limit",
    Reason.STOPPED: "it was stopped",
    Reason.REMOVED: "it was removed",
    Reason.AGENT_LOST: "its agent was lost",
    Reason.START_FAILED: "it did not start",
}


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job, as its agent announces it.

    Attributes:
        uid: the job's uid, chosen by the router that created it; unique for ever.
        connection: uid of the connection it was created through; with `uid` it makes the job's path.
        revision: grows with every change of this job; a lower one is stale news.
        endpoint: where its server answers on the agent's host: ``{"port": int}`` (on 127.0.0.1, or on ``"host"`` if
            that is there too, for example ``::1``), ``{"socket": str}`` (path of a unix socket), or None without one.
        path_mode: ``strip`` (the job sees paths without the public prefix) or ``keep``.
        host_mode: ``public`` (the job sees the Host that the client asked for) or ``local`` (that of its own address).
        ports: every port it reported or was given.
        pid: of its first process, while it runs.
    """

    uid: str
    connection: str
    name: str
    state: State = State.NEW
    revision: int = 0
    args: list[str] = field(default_factory=list)
    pid: int | None = None
    ports: list[int] = field(default_factory=list)
    endpoint: dict[str, Any] | None = None
    path_mode: str = "strip"
    host_mode: str = "public"
    exit_code: int | None = None
    signal: str | None = None
    reason: Reason | None = None
    error: str | None = None
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    cpu_seconds: float | None = None
    rss_bytes: int | None = None

    @property
    def path(self) -> str:
        """The job's public path, ``/jobs/<connection uid>/<job uid>``."""
        return f"/jobs/{self.connection}/{self.uid}"

    @property
    def ended(self) -> bool:
        """Whether the job will never run again."""
        return self.state in ENDED

    @property
    def ending(self) -> str:
        """How an ended job ended, one sentence for a person; empty for one that has not."""
        if not self.ended:
            return ""
        if self.reason is None:
            return "the job has ended"
        if self.reason is Reason.EXITED:
            return f"the job has ended: exited with code {self.exit_code}"
        if self.reason is Reason.SIGNALED:
            return f"the job has ended: killed by {self.signal}"
        return f"the job has ended: {_TOLD[self.reason]}"

    def to_wire(self) -> dict[str, Any]:
        """The record as a msgpack- and JSON-ready map."""
        wire: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        wire["args"] = list(self.args)
        wire["ports"] = list(self.ports)
        wire["endpoint"] = dict(self.endpoint) if self.endpoint is not None else None
        wire["state"] = self.state.value
        wire["reason"] = self.reason.value if self.reason is not None else None
        return wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> JobRecord:
        """Rebuild a record; fields this version does not know are ignored.

        Raises:
            KeyError: uid, connection or name is missing.
            ValueError: the state or the reason is not one of the known.
        """
        known = {name: wire[name] for name in _FIELDS if name in wire}
        known["state"] = State(known.get("state", State.NEW))
        if known.get("reason") is not None:
            known["reason"] = Reason(known["reason"])
        for name in ("uid", "connection", "name"):
            if name not in known:
                raise KeyError(name)
        return cls(**known)


_FIELDS = tuple(f.name for f in fields(JobRecord))


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 writes them, UTC, with milliseconds."""
    whole, rest = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{rest // 1000:03d}Z"


@lru_cache(maxsize=4096)  # The times of jobs in a list lie close together.
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
