"""What the router answers, as frozen data classes. Fields that this version does not know are in ``raw``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

from prouter.client.core.errors import RouterError

__all__ = [
    "Bridge",
    "Connection",
    "Entry",
    "Event",
    "Explanation",
    "Identity",
    "JobInfo",
    "Outcome",
    "RouterInfo",
    "Share",
    "Synced",
    "Token",
    "Transferred",
    "WhoAmI",
]

Model = TypeVar("Model", bound="_Model")
_TIMES = ("created_at", "started_at", "finished_at", "since", "created", "expires", "at")


@dataclass(frozen=True, kw_only=True)
class _Model:
    """An answer.

    Attributes:
        raw: the answer as it came, for programs that print or store it.
    """

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls: type[Model], answer: Mapping[str, Any]) -> Model:
        """Return an answer as a model; fields that are missing get their defaults.

        Raises:
            RouterError: a field is missing that every router sends.
        """
        known = {one.name for one in fields(cls)} - {"raw"}
        values = {name: _time(value) if name in _TIMES else value for name, value in answer.items() if name in known}
        try:
            return cls(**values, raw=answer)
        except TypeError as error:
            raise RouterError(f"the answer is not a router's: {error}; check the URL", code="not_a_router") from None


def _time(value: Any) -> Any:
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Uid and name of a router or an agent."""

    uid: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class RouterInfo(_Model):
    """A router.

    Attributes:
        auth: its ``uid`` and ``name``.
        platform: of its machine.
    """

    auth: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """The router's uid."""
        return self.auth.get("uid", "")

    @property
    def name(self) -> str:
        """The router's name."""
        return self.auth.get("name", "")


@dataclass(frozen=True, kw_only=True)
class Connection(_Model):
    """An agent that the router is connected with.

    Attributes:
        uid: of the connection, which `drain` and `resume` take.
        mode: ``SERVER`` if the agent dialled in, ``CLIENT`` if the router dialled out.
        peer: the agent's ``auth``, ``platform`` and ``properties``.
        since: when the agent linked.
        latency_ms: round trip time.
        load: of the agent's machine over a minute, per core.
        jobs: number of running jobs.
        up: whether the agent can be reached now.
        resources: what its jobs may take, by name; None for what the agent does not count.
        resources_used: what they take.
        routers: to which routers the agent links: ``address``, ``uid`` and ``up`` of each.
        pool: its templates by name, each with the ``size`` of its pool, how many jobs are ``ready``, and ``failures``.
    """

    uid: str
    mode: str = ""
    peer: Mapping[str, Any] = field(default_factory=dict)
    since: datetime | None = None
    latency_ms: float | None = None
    load: float | None = None
    jobs: int = 0
    version: str = ""
    encrypted: bool = False
    draining: bool = False
    up: bool = True
    resources: Mapping[str, float | None] = field(default_factory=dict)
    resources_used: Mapping[str, float] = field(default_factory=dict)
    routers: Sequence[Mapping[str, Any]] = ()
    pool: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def agent(self) -> Identity:
        """The agent's uid and name."""
        auth = self.peer.get("auth", {})
        return Identity(uid=auth.get("uid", ""), name=auth.get("name", ""))

    @property
    def properties(self) -> Mapping[str, Any]:
        """The agent's properties, as configured."""
        properties: Mapping[str, Any] = self.peer.get("properties", {})
        return properties


@dataclass(frozen=True, kw_only=True)
class Outcome(_Model):
    """How a job ended, or where it is if it has not.

    Attributes:
        state: ``FINISHED`` or ``CLOSED`` (removed) once it has ended.
        exit_code: of its first process; None if a signal ended it.
        signal: the signal that ended it, such as ``SIGTERM``, or None.
        reason: ``exited``, ``signaled``, ``stopped``, ``timeout``, ``memory`` … (docs/jobs.md).
        error: what went wrong, for people, or None.
    """

    state: str
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the job ended by itself with exit code 0."""
        return self.reason == "exited" and self.exit_code == 0

    @property
    def ended(self) -> bool:
        """Whether the job will never run again."""
        return self.state in ("FINISHED", "CLOSED")


@dataclass(frozen=True, kw_only=True)
class Explanation(_Model):
    """Why a job waits, has ended or cannot be reached.

    Attributes:
        text: all findings in one text.
        findings: each with ``ok``, ``text``, and what to ``do`` about it under ``todo``, or None.
    """

    uid: str = ""
    state: str = ""
    phase: str | None = None
    position: int | None = None
    text: str = ""
    findings: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class JobInfo(Outcome):
    """A job as it was when the router answered.

    Attributes:
        phase: ``queued`` (its start waits, or the job for an agent), ``starting``, ``ready``, ``frozen``,
            ``unreachable``, ``stopping``, ``exited`` or ``failed``; None if it was not started.
        position: its place in the router's queue, from 1 on; None outside of it.
        queue: why its start waits, and its ``expected_start`` if that is known; None unless the phase is ``queued``.
        node: the machine where it runs or ran, if that is not the agent's own.
        path: ``/jobs/<connection uid>/<job uid>``, the prefix of all its requests.
        base_url: path of the job's server on the router; None without one.
        url: where a person opens the job's server; None without one.
        agent: its ``uid``, ``name``, ``platform`` and ``properties``.
        confirmed: False between a restart of the router and the return of the agent.
        args: as started; shortened if long (`args_shortened`).
        owner: name of the access token that created it; None if none was needed.
        template: name of the template by which it is started; None without one.
        cpu_seconds: CPU time of all its processes.
        rss_bytes: resident memory of all its processes.
        resources: what it takes of its agent's resources until it has ended.
    """

    uid: str
    name: str = ""
    phase: str | None = None
    position: int | None = None
    queue: Mapping[str, Any] | None = None
    node: str | None = None
    path: str = ""
    base_url: str | None = None
    url: str | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)
    sender: Mapping[str, Any] = field(default_factory=dict)
    confirmed: bool = True
    args: list[str] = field(default_factory=list)
    args_shortened: bool = False
    pid: int | None = None
    ports: list[int] = field(default_factory=list)
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    owner: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    template: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event(_Model):
    """A change of a job or an agent.

    Attributes:
        type: ``job``, ``job.removed``, ``agent``, or ``dropped``: some events before this one are missing; ask `list`.
        id: its number; `Router.events` continues after it.
        data: what the router tells (docs/http-api.md, "Events").
    """

    type: str
    id: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> JobInfo | None:
        """The job as it is now, for events of jobs."""
        job = self.data.get("job")
        return JobInfo.of(job) if isinstance(job, dict) else None


@dataclass(frozen=True, kw_only=True)
class Entry(_Model):
    """One entry of a directory in a sandbox.

    Attributes:
        path: from the sandbox's root. Bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`.
        type: ``file``, ``dir``, ``link`` (never followed) or ``other``.
        size: bytes.
        mtime: seconds since the epoch.
        mode: permission bits.
    """

    name: str
    path: str = ""
    type: str = "file"
    size: int = 0
    mtime: float = 0.0
    mode: int = 0


@dataclass(frozen=True, kw_only=True)
class Token(_Model):
    """An access token.

    Attributes:
        token: its text, only right after it was made.
        expires: when it ends; None for never.
    """

    id: str
    name: str = ""
    role: str = ""
    created: datetime | None = None
    expires: datetime | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class WhoAmI(_Model):
    """Whom the router takes this client for.

    Attributes:
        name: of the token; None while the router asks nobody for one.
        role: ``viewer``, ``user``, ``operator`` or ``admin``.
    """

    name: str | None = None
    role: str = ""
    via: str = ""


@dataclass(frozen=True, kw_only=True)
class Share(_Model):
    """A link that lets people without a token use a job's server.

    Attributes:
        url: the link, only right after it was made: whoever has it gets in.
        methods: ``all`` or ``read``.
        created_by: name of the token with which it was made, on which it depends.
        expires: when it ends; None for as long as the job exists.
        valid: whether it opens the job now.
    """

    id: str
    url: str | None = field(default=None, repr=False)
    name: str | None = None
    methods: str = "all"
    created_by: str | None = None
    valid: bool = True
    created: datetime | None = None
    expires: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Bridge(_Model):
    """A connection between a WebSocket of a job and one of another server."""

    uid: str
    path: str = ""
    url: str = ""
    since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """What an upload or download did.

    Attributes:
        files: number of files and links.
        bytes: bytes of their contents.
        skipped: links that lead out of the directory, and devices: they were left out.
    """

    files: int
    bytes: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What a `sync` did, as paths below the directory.

    Attributes:
        sent: were new or different.
        deleted: were only in the sandbox.
        kept: number of files that were the same.
        bytes: bytes of the contents that were sent.
    """

    sent: tuple[str, ...]
    deleted: tuple[str, ...]
    kept: int
    bytes: int
