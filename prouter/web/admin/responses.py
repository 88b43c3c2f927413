"""Response bodies of the HTTP API as models: the source of OpenAPI's schemas, and what tests hold answers against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Bridges",
    "Connection",
    "Connections",
    "Info",
    "JobInfo",
    "JobList",
    "Listing",
    "Problem",
    "Status",
]

Time = Field(description="RFC 3339, UTC.")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Identity(_Answer):
    """Who a router or an agent is."""

    uid: str
    name: str = Field(description="For people.")


class Info(_Answer):
    """Answer of GET /info."""

    auth: Identity
    platform: dict[str, str] = Field(description="system, node, release, version, machine, processor")


class Peer(_Answer):
    """The agent at the other end of a connection."""

    auth: Identity
    platform: dict[str, str]
    properties: dict[str, Any] = Field(description="As configured on the agent.")


class Connection(_Answer):
    """A connection with an agent."""

    uid: str
    mode: Literal["SERVER", "CLIENT"] = Field(
        description="SERVER: the agent dialled in; CLIENT: the router dialled out."
    )
    peer: Peer
    since: str = Field(description="When it was linked; RFC 3339, UTC.")
    latency_ms: float | None = Field(description="Round trip time, milliseconds.")
    load: float | None = Field(description="Load of the agent's machine over a minute, per core.")
    jobs: int = Field(description="Jobs that run.")
    version: str = Field(description="Of the agent.")
    draining: bool = Field(description="Whether it takes no new jobs.")
    up: bool = Field(description="Whether it can be reached now.")


class Connections(_Answer):
    """Answer of GET /connections."""

    connections: list[Connection]


class Sender(_Answer):
    """The router, as the agent sees it."""

    direction: Literal["CLIENT", "SERVER"] = Field(
        description="CLIENT when the agent dialled in, SERVER when the router dialled out."
    )
    uid: str
    name: str


class JobAgent(_Answer):
    """Where a job is."""

    uid: str
    name: str
    platform: dict[str, str]
    properties: dict[str, Any]


class JobInfo(_Answer):
    """A job."""

    uid: str
    name: str
    state: Literal["NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED"]
    sender: Sender
    path: str = Field(description="JOB_PATH: prefix of all requests for this job.")
    base_url: str | None = Field(description="Path of its server as seen through the router; null without one.")
    url: str | None = Field(
        description="Address at which a person opens its server: its own host name with control.job_domain, else "
        "base_url under the host name this request was sent to; null without a server."
    )
    agent: JobAgent
    confirmed: bool = Field(description="False between a restart of the router and the return of the agent.")
    args: list[str] = Field(description="As started, templates filled in; the beginning of them where they are long.")
    args_shortened: bool = Field(description="Whether there was more of them.")
    pid: int | None = Field(description="Of its first process, while it runs.")
    ports: list[int] = Field(description="Ports it reported or was given, a thousand at most.")
    exit_code: int | None
    signal: str | None = Field(description="The signal that ended it, for example SIGTERM.")
    reason: (
        Literal[
            "exited",
            "signaled",
            "timeout",
            "memory",
            "cpu",
            "processes",
            "sandbox",
            "stopped",
            "removed",
            "agent_lost",
            "start_failed",
        ]
        | None
    ) = Field(description="Why it ended.")
    error: str | None = Field(description="What went wrong, for people.")
    created_at: str = Time
    started_at: str | None = Time
    finished_at: str | None = Time
    cpu_seconds: float | None = Field(description="CPU time of the whole process tree.")
    rss_bytes: int | None = Field(description="Resident memory of the whole process tree.")


class JobList(_Answer):
    """Answer of GET /jobs."""

    jobs: list[JobInfo] = Field(description="Newest first.")
    next: str | None = Field(description="Cursor of the next page; null on the last.")


class Entry(_Answer):
    """One thing in a directory."""

    name: str = Field(description="Bytes that are not UTF-8 as lone surrogates.")
    href: str = Field(description="The name percent-encoded, to be appended to the directory's URL.")
    type: Literal["file", "dir", "link", "other"]
    size: int
    mtime: float = Field(description="Seconds since the epoch.")
    mode: int = Field(description="Permission bits.")


class Listing(_Answer):
    """A directory."""

    path: str
    entries: list[Entry]


class Bridge(_Answer):
    """A WebSocket bridge between a job and another server."""

    uid: str
    connection: str
    job: str
    path: str = Field(description="Of the job's WebSocket, below the job's root.")
    url: str = Field(description="Of the other server's.")
    since: str = Field(description="RFC 3339, UTC.")


class Bridges(_Answer):
    """The bridges of a job."""

    bridges: list[Bridge]


class Status(_Answer):
    """Answer of /healthz and /readyz."""

    status: Literal["ok", "ready"]


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong, for people.")
    code: str = Field(description="What is wrong, for programs; also in the header X-PRouter-Error.")
    request_id: str = Field(description="Also in the logs and in the header X-Request-ID.")
    job: str | None = Field(default=None, description="Uid of the job concerned.")
    state: str | None = Field(default=None, description="State of the job concerned.")
