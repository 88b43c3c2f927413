"""Response bodies of the HTTP API as models, for OpenAPI's schemas and for tests of the responses."""

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
    "NewToken",
    "Problem",
    "PublicKeys",
    "Status",
    "Token",
    "Tokens",
    "WhoAmI",
]

Time = Field(description="RFC 3339, UTC.")


class _Response(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Identity(_Response):
    """Identity of a router or an agent."""

    uid: str
    name: str = Field(description="Name for people.")


class Info(_Response):
    """Response to GET /info."""

    auth: Identity
    platform: dict[str, str] = Field(description="system, node, release, version, machine, processor")


class Peer(_Response):
    """The agent at the other end of a connection."""

    auth: Identity
    platform: dict[str, str]
    properties: dict[str, Any] = Field(description="As configured on the agent.")


class PoolFigures(_Response):
    """The jobs of one template that an agent keeps ready."""

    size: int = Field(description="How many there should be.")
    ready: int = Field(description="How many can be given away now.")
    failures: int = Field(description="Starts that failed, since a job was ready for a minute or given away.")


class AgentsRouter(_Response):
    """A router to which an agent links."""

    address: str = Field(description="Address at which the agent dials it; empty if the router dialled the agent.")
    uid: str = Field(description="Uid of the router; empty until it was linked.")
    up: bool = Field(description="Whether it is linked now.")


class Connection(_Response):
    """A connection to an agent."""

    uid: str
    mode: Literal["SERVER", "CLIENT"] = Field(
        description="SERVER: the agent dialled in; CLIENT: the router dialled out."
    )
    peer: Peer
    since: str = Field(description="Time at which the agent linked; RFC 3339, UTC.")
    latency_ms: float | None = Field(description="Round trip time, milliseconds.")
    load: float | None = Field(description="Load average of the agent's machine over a minute, per core.")
    jobs: int = Field(description="Number of running jobs.")
    version: str = Field(description="Version of the agent.")
    encrypted: bool = Field(description="Whether the link is encrypted.")
    draining: bool = Field(description="Whether no new jobs are placed on the agent.")
    routers: list[AgentsRouter] = Field(description="The routers to which the agent links, as it tells; at most 32.")
    up: bool = Field(description="Whether the agent can be reached now.")
    resources: dict[str, float | None] = Field(
        description="What the agent's jobs may take: its jobs.resources. null: its runner counts, not the agent."
    )
    resources_used: dict[str, float] = Field(description="What its jobs take, those of other routers included.")
    pool: dict[str, PoolFigures] = Field(description="Templates (jobs.pool) and the jobs that are kept ready.")


Phase = Literal["queued", "starting", "ready", "frozen", "unreachable", "stopping", "exited", "failed"]


class Finding(_Response):
    """One thing that is to be said about a job."""

    ok: bool = Field(description="Whether it is as it should be.")
    text: str
    todo: str | None = Field(description="What to do about it.")


class Explanation(_Response):
    """Response to GET JOB_PATH/explain."""

    uid: str
    name: str
    state: Literal["NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED"]
    phase: Phase | None = Field(description="As in the job's info.")
    position: int | None = Field(description="As in the job's info.")
    text: str = Field(description="All findings in one text.")
    findings: list[Finding]


class Connections(_Response):
    """Response to GET /connections."""

    connections: list[Connection]
    next: str | None = Field(
        default=None, description="Cursor of the next page; null on the last page. Absent if no page was asked for."
    )


class Sender(_Response):
    """The router, as the agent sees it."""

    direction: Literal["CLIENT", "SERVER"] = Field(
        description="CLIENT when the agent dialled in, SERVER when the router dialled out."
    )
    uid: str
    name: str


class JobAgent(_Response):
    """The agent of a job."""

    uid: str
    name: str
    platform: dict[str, str]
    properties: dict[str, Any]


class Queue(_Response):
    """Why a start waits."""

    reason: str = Field(description="In the words of the cluster's queue; empty if it is not known.")
    expected_start: str | None = Field(description="RFC 3339, UTC; null if it is not known.")


class JobInfo(_Response):
    """A job."""

    uid: str
    name: str
    state: Literal["NEW", "PENDING", "RUNNING", "FINISHED", "CLOSED"]
    phase: Phase | None = Field(
        description="What the job does; null if it was not started. While a start waits in a queue, or the job for an "
        "agent, it is NEW and its phase queued."
    )
    position: int | None = Field(description="Its place in the router's queue, from 1 on; null outside of it.")
    queue: Queue | None = Field(description="While the phase is queued.")
    node: str | None = Field(description="The machine where it runs or ran, if that is not the agent's own.")
    sender: Sender
    path: str = Field(description="JOB_PATH: prefix of all requests for this job.")
    base_url: str | None = Field(description="Path of the job's server on the router; null without one.")
    url: str | None = Field(
        description="URL at which a person opens the job's server: on its own host name with control.job_domain, else "
        "base_url on the host name of this request; null without a server."
    )
    agent: JobAgent
    confirmed: bool = Field(description="False between a restart of the router and the return of the agent.")
    args: list[str] = Field(description="As started, templates filled in; shortened if long.")
    args_shortened: bool = Field(description="Whether args was shortened.")
    pid: int | None = Field(description="Process id of the first process, while it runs.")
    ports: list[int] = Field(description="Ports the job reported or was given, at most a thousand.")
    exit_code: int | None
    signal: str | None = Field(description="Signal that ended the job, for example SIGTERM.")
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
            "queue_timeout",
            "port_taken",
            "walltime",
            "node_failed",
            "preempted",
            "cancelled",
        ]
        | None
    ) = Field(description="Why the job ended.")
    error: str | None = Field(description="What went wrong, for people.")
    resources: dict[str, float] = Field(description="What the job takes of its agent's resources until it has ended.")
    created_at: str = Time
    started_at: str | None = Time
    finished_at: str | None = Time
    cpu_seconds: float | None = Field(description="CPU time of the whole process tree.")
    rss_bytes: int | None = Field(description="Resident memory of the whole process tree.")
    owner: str | None = Field(description="Name of the access token that created it; null if none was needed.")
    template: str | None = Field(description="Template (jobs.pool) by which it is started; null without one.")


class JobList(_Response):
    """Response to GET /jobs."""

    jobs: list[JobInfo] = Field(description="Newest first.")
    next: str | None = Field(description="Cursor of the next page; null on the last page.")


class Entry(_Response):
    """One entry of a directory."""

    name: str = Field(description="Bytes that are not UTF-8 are lone surrogates.")
    href: str = Field(description="The name, percent-encoded, to append to the directory's URL.")
    type: Literal["file", "dir", "link", "other"]
    size: int
    mtime: float = Field(description="Seconds since the epoch.")
    mode: int = Field(description="Permission bits.")


class Listing(_Response):
    """Listing of a directory."""

    path: str
    entries: list[Entry]


class Bridge(_Response):
    """A WebSocket bridge between a job and another server."""

    uid: str
    connection: str
    job: str
    path: str = Field(description="Path of the job's WebSocket below the job's root.")
    url: str = Field(description="URL of the other server's WebSocket, without secrets.")
    since: str = Field(description="RFC 3339, UTC.")


class Bridges(_Response):
    """The bridges of a job."""

    bridges: list[Bridge]


class Token(_Response):
    """An access token, without its text."""

    id: str
    name: str = Field(description="Of its holder; the owner of the jobs that are created with it.")
    role: Literal["viewer", "user", "operator", "admin"]
    created: str | None = Field(description="RFC 3339, UTC; null for a token of control.tokens.")
    expires: str | None = Field(description="RFC 3339, UTC; null for never.")


class NewToken(Token):
    """A token that was just made."""

    token: str = Field(description="Its text, which is shown this once.")


class Tokens(_Response):
    """Response of GET /tokens."""

    tokens: list[Token]


class Share(_Response):
    """A share link."""

    id: str
    name: str
    methods: Literal["all", "read"]
    created_by: str
    created: str = Field(description="RFC 3339, UTC.")
    expires: str | None = Field(description="RFC 3339, UTC; null for as long as the job exists.")
    valid: bool = Field(description="Whether it opens the job now.")


class NewShare(Share):
    """A share link that was just made."""

    url: str = Field(description="Opens the job; shown this once.")


class Shares(_Response):
    """Response of GET JOB_PATH/share."""

    shares: list[Share]


class Pass(_Response):
    """Response of POST JOB_PATH/pass."""

    url: str = Field(description="Opens the job in a browser; to be followed within a minute.")


class PublicKey(_Response):
    """A public key (RFC 7517)."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str
    kid: str = Field(description="As the assertion's head has it.")
    use: Literal["sig"]
    alg: Literal["ES256"]


class PublicKeys(_Response):
    """Response of GET /.well-known/jwks.json."""

    keys: list[PublicKey]


class WhoAmI(_Response):
    """Response of GET /whoami."""

    name: str | None = Field(description="Null while this router asks nobody for a token.")
    role: Literal["viewer", "user", "operator", "admin"]
    via: Literal["token", "session", "proxy", "open"] = Field(
        description="How the identity was shown: an access token, a session of the dashboard, a trusted proxy's user; "
        "open: nobody has to show one."
    )


class Status(_Response):
    """Response of /healthz and /readyz."""

    status: Literal["ok", "ready"]


class LimitOver(_Response):
    """The limit that a request was over."""

    name: str = Field(description="Configuration key, such as limits.jobs_per_owner.")
    value: float = Field(description="Of that key.")


class Problem(_Response):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong, for people.")
    code: str = Field(description="What is wrong, for programs; also in the header X-PRouter-Error.")
    request_id: str = Field(description="Also in the logs and in the header X-Request-ID.")
    job: str | None = Field(default=None, description="Uid of the job that the error is about.")
    state: str | None = Field(default=None, description="State of that job.")
    limit: LimitOver | None = Field(default=None, description="The limit that was over, in most errors of status 429.")
    made: str | None = Field(
        default=None,
        description="Id of the token or share link that an earlier request with this Idempotency-Key has made.",
    )
