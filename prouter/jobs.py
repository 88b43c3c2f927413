"""Job states and records, as agents report them, the fabric carries them and the broker stores them.

Agent, broker and API use this module; it needs the standard library only. Times are seconds since the epoch (float,
UTC), sizes are bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import lru_cache
from typing import Any

__all__ = [
    "ENDED",
    "INTERNAL_FIELDS",
    "MAX_NAME",
    "MAX_RECORD",
    "OWNER_NAME",
    "TEMPLATE_NAME",
    "JobRecord",
    "Phase",
    "Reason",
    "State",
    "bounded",
    "phase_of",
    "rfc3339",
    "shortened",
]

MAX_NAME = 512
"""Characters of a job's name."""
OWNER_NAME = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}"
"""Pattern of the names of those who own jobs. Without blanks, which separate it from others in stored keys."""
TEMPLATE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Pattern of the names of templates (``jobs.pool``)."""
MAX_RECORD = 16 * 1024
"""Bytes of an encoded record after `bounded`, at most."""
_ARGS = 256
"""Arguments in a record, at most."""
_ARGS_BYTES = 4096
"""Bytes (UTF-8) of arguments in a record, at most."""
_ARG_COST = 8
"""Bytes that each argument counts beside its own: its encoding takes some."""
_ERROR_BYTES = 4096
"""Bytes (UTF-8) of the error text in a record, at most."""
_QUEUE_REASON = 512
"""Characters of the reason why a job waits in a queue, at most."""
_PORTS = 1000
"""Ports in a record, at most."""
_CUT = "…"
"""Ends a text that was shortened."""


class State(str, Enum):
    """Where a job is in its life. NEW → PENDING → RUNNING → FINISHED; CLOSED once removed."""

    NEW = "NEW"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    CLOSED = "CLOSED"


class Phase(str, Enum):
    """What a job does, for people and programs that need more than its state.

    A job whose start waits in a queue is QUEUED and has the state NEW: it was started, and nothing of it runs.
    """

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    FROZEN = "frozen"
    UNREACHABLE = "unreachable"
    STOPPING = "stopping"
    EXITED = "exited"
    FAILED = "failed"


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
    QUEUE_TIMEOUT = "queue_timeout"
    PORT_TAKEN = "port_taken"
    WALLTIME = "walltime"
    NODE_FAILED = "node_failed"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"


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
    Reason.QUEUE_TIMEOUT: "no agent had space for it in time",
    Reason.PORT_TAKEN: "its port was another program's",
    Reason.WALLTIME: "its time limit in the cluster was over",
    Reason.NODE_FAILED: "its machine in the cluster failed",
    Reason.PREEMPTED: "another job of the cluster took its place",
    Reason.CANCELLED: "it was cancelled in the cluster",
}
_FAILURES = frozenset(
    {Reason.START_FAILED, Reason.QUEUE_TIMEOUT, Reason.PORT_TAKEN, Reason.NODE_FAILED, Reason.AGENT_LOST}
)
"""Ends that no exit status of the job's own explains."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job, as its agent reports it.

    Attributes:
        uid: the job's uid, chosen by the router that created it; unique for ever.
        connection: uid of the connection it was created through; with `uid` it makes the job's path.
        revision: grows with every change of this job; records with a lower one are stale.
        endpoint: where the job's server listens on the agent's machine: ``{"port": int}`` (on 127.0.0.1, or on the
            address ``"host"`` if that is given, for example ``::1``), ``{"socket": str}`` (path of a unix socket), or
            None without a server.
        path_mode: ``strip`` (the job gets paths without the public prefix) or ``keep``.
        host_mode: ``public`` (the job gets the client's Host) or ``local`` (the Host of its own address).
        args: arguments as started, with templates filled in; only the beginning of long ones.
        args_shortened: whether there are more arguments than `args` holds.
        ports: ports that the job reported or was given, at most a thousand.
        pid: process id of the job's first process, while it runs.
        owner: name of the access token that created the job; None if it was created without one.
        key: hash of the idempotency key that created the job; None if the client sent none.
        digest: tells the request with that key from others.
        queue: while a start waits in the queue of the agent's runner, ``{"reason": str, "expected_start": float or
            None}``; None otherwise. Such a job is NEW.
        node: name of the machine where it runs or ran, if that is not the agent's.
        resources: what it takes of its agent's resources, by name, until it has ended.
        template: name of the template (``jobs.pool``) by which it is started; None without one.
        instead_of: uid that the router had chosen, if the agent gave this job instead because it was ready; else None.
        client: the first part of its path, for a job that was queued before an agent got it; None for `connection`.
        will_start: whether the router that queued it starts it, without another request. Such a job is NEW until then.
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
    args_shortened: bool = False
    owner: str | None = None
    key: str | None = None
    digest: str | None = None
    queue: dict[str, Any] | None = None
    node: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    template: str | None = None
    instead_of: str | None = None
    client: str | None = None
    will_start: bool = False

    @property
    def phase(self) -> Phase | None:
        """What the job does; None if nobody has started it."""
        return phase_of(self.state, self.reason, queued=self.queue is not None, will_start=self.will_start)

    @property
    def path(self) -> str:
        """The job's public path, ``/jobs/<connection uid>/<job uid>``, which never changes."""
        return f"/jobs/{self.client or self.connection}/{self.uid}"

    @property
    def ended(self) -> bool:
        """Whether the job will never run again."""
        return self.state in ENDED

    @property
    def ending(self) -> str:
        """How the job ended, as a sentence for a person; empty while it has not."""
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
        """Return the record as a map for msgpack and JSON."""
        wire: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        wire["args"] = list(self.args)
        wire["ports"] = list(self.ports)
        wire["resources"] = dict(self.resources)
        wire["endpoint"] = dict(self.endpoint) if self.endpoint is not None else None
        wire["queue"] = dict(self.queue) if self.queue is not None else None
        wire["state"] = self.state.value
        wire["reason"] = self.reason.value if self.reason is not None else None
        return wire

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> JobRecord:
        """Rebuild a record from a map; fields that this version does not know are ignored.

        Raises:
            KeyError: uid, connection or name is missing.
            ValueError: the state or the reason is unknown.
        """
        known = {name: wire[name] for name in _FIELDS if name in wire}
        known["state"] = State(known.get("state", State.NEW))
        if known.get("reason") is not None:
            known["reason"] = Reason(known["reason"])
        for name in ("uid", "connection", "name"):
            if name not in known:
                raise KeyError(name)
        return cls(**known)


def phase_of(state: State, reason: Reason | None, *, queued: bool, will_start: bool) -> Phase | None:
    """The phase of a job in this state.

    Args:
        reason: why it ended, if it has.
        queued: whether its start waits in a queue.
        will_start: see `JobRecord`.
    """
    if state is State.NEW and not queued:
        return Phase.STARTING if will_start else None
    if state is State.NEW:
        return Phase.QUEUED
    if state in ENDED and reason is None:
        return None  # It was removed before it was started.
    if state in ENDED:
        return Phase.FAILED if reason in _FAILURES else Phase.EXITED
    return Phase.STARTING if state is State.PENDING else Phase.READY


_FIELDS = tuple(f.name for f in fields(JobRecord))
INTERNAL_FIELDS = frozenset(
    [
        "connection",
        "revision",
        "endpoint",
        "path_mode",
        "host_mode",
        "key",
        "digest",
        "instead_of",
        "client",
        "will_start",
    ]
)
"""Fields of a job's record that clients do not see."""


def bounded(record: JobRecord) -> JobRecord:
    """Shorten long fields of a record, so that its encoding has at most `MAX_RECORD` bytes.

    Records are sent, stored and listed many times. The only one who needs all arguments is the client, which sent them.
    """
    changes: dict[str, Any] = {}
    if len(record.name) > MAX_NAME:
        changes["name"] = record.name[: MAX_NAME - 1] + _CUT
    if len(record.ports) > _PORTS:
        changes["ports"] = record.ports[:_PORTS]
    if record.error is not None and len(record.error) * 4 > _ERROR_BYTES:
        changes["error"] = shortened(record.error, _ERROR_BYTES)
    if record.queue is not None and len(record.queue["reason"]) > _QUEUE_REASON:
        changes["queue"] = {**record.queue, "reason": record.queue["reason"][: _QUEUE_REASON - 1] + _CUT}
    args = _beginning(record.args)
    if args is not None:
        changes["args"], changes["args_shortened"] = args, True
    return replace(record, **changes) if changes else record


def shortened(text: str, most: int) -> str:
    """Return the text, or its beginning and an ellipsis if it has more than `most` bytes (UTF-8)."""
    data = text[:most].encode("utf-8", "surrogatepass")
    if len(data) <= most and len(text) <= most:
        return text
    return data[: most - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def _beginning(args: list[str]) -> list[str] | None:
    """Return as many of the arguments as a record holds; None if that is all of them."""
    left = _ARGS_BYTES
    shown: list[str] = []
    for arg in args:
        size = (len(arg) if arg.isascii() else len(arg.encode("utf-8", "surrogatepass"))) + _ARG_COST
        if size > left or len(shown) == _ARGS:
            if left > 2 * _ARG_COST:
                shown.append(shortened(arg, left - _ARG_COST))
            return shown
        shown.append(arg)
        left -= size
    return None


def rfc3339(seconds: float) -> str:
    """Format seconds since the epoch by RFC 3339, in UTC with milliseconds."""
    whole, rest = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{rest // 1000:03d}Z"


@lru_cache(maxsize=4096)  # Jobs in a list often share the second.
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
