"""Configuration keys of router and agent: one model per section, one field with its description per key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from prouter.addresses import router_endpoint, split_address
from prouter.host_names import check_domain, check_pattern
from prouter.tokens import problem_of

__all__ = ["SECRET_KEYS", "AgentConfig", "Log", "RouterConfig", "Section", "keys", "sections"]

MIB = 1024 * 1024
SECRET_KEYS = frozenset({"server.accept_tokens", "client.token", "control.tokens"})
"""Keys whose values are never shown or logged."""
Tokens = tuple[str, ...] | dict[str, str]
"""Tokens that are accepted from anybody, or the token of each uid."""


class Section(BaseModel):
    """Base of all sections: it refuses unknown keys, and does not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a truth value where a number is expected: ``port: yes`` is a mistake, but Python takes True for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("truth_value", "not a truth value")
        return value


class Log(Section):
    """Level and format of the log."""

    level: Literal["debug", "info", "warning", "error", "fatal"] = Field("info", description="Output log level.")
    format: Literal["text", "json"] = Field("text", description="One line of text, or one JSON object, per event.")


class Fabric(Section):
    """Streams between router and agents."""

    window: int = Field(
        MIB // 4,
        ge=65536,
        le=64 * MIB,
        description="Bytes in flight per stream and direction at first. Streams to agents with a long round trip begin "
        "with four times that; fast streams grow to 32 times that, but at most 8 MiB.",
    )
    resume_timeout: float = Field(
        30.0, gt=0, description="Seconds for which streams survive a broken connection between router and agent."
    )


def _known_keys(value: dict[str, str]) -> dict[str, str]:
    for address in value:
        split_address(address)
    return value


class RouterClient(Section):
    """Agents that the router dials."""

    agent_keys: Annotated[dict[str, str], AfterValidator(_known_keys)] = Field(
        default_factory=dict,
        description="Public key of each agent that is dialled, by 'host:port': in Z85, or the path of a file NAME.key. "
        "Links to these agents are encrypted.",
    )
    insecure: bool = Field(
        False, description="Dial agents on other machines without encryption when their key is not known."
    )

    polling_delay: float = Field(
        10.0,
        gt=0,
        description="Delay (in seconds) between checking if active agent connections are idle "
        "and may be safely dropped.",
    )


class RouterControl(Section):
    """The endpoint for administration and jobs."""

    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8888, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    unix: str | None = Field(None, description="Path of a unix socket to listen on as well.")
    workers: int = Field(2, ge=1, description="Number of worker processes.")
    hold: float = Field(
        10.0, ge=0, description="Seconds a request waits for a job that is starting, or whose agent is away."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR) whose forwarded headers are believed; 'unix' stands for the unix socket.",
    )
    job_domain: str | None = Field(
        None,
        description="Domain below which each job gets a host name of its own, such as jobs.example.org; use "
        "jobs.localhost for browsers on this machine.",
    )
    job_domain_only: bool = Field(
        False,
        description="Serve jobs under these host names only, so that each has an origin of its own; requests below "
        "/jobs/C/J/http/ are redirected there.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Host names under which the API and the dashboard answer, besides localhost and the machine's own "
        "names and IP addresses; '*.example.org' for all names below it, '*' for any.",
    )
    tokens: tuple[str, ...] = Field(
        (),
        description="Reserved for access tokens of the HTTP API. This version refuses them, as it does not check them.",
    )
    allow_open: bool = Field(
        False, description="Permit an interface beyond loopback, because something else checks access."
    )
    drain_delay: float = Field(
        1.0,
        ge=0,
        description="Seconds for which /readyz answers 503 before a stop, so that load balancers look elsewhere.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="Seconds that requests in progress get to finish when workers stop."
    )
    max_connections: int = Field(
        10000,
        ge=1,
        description="Client connections per worker. Beyond it the worker closes idle ones, then those whose client has "
        "stopped sending its request or reading its response; then it answers 503.",
    )
    max_requests: int = Field(
        0, ge=0, description="Requests after which a worker is replaced, give or take a tenth; 0 for never."
    )
    response_timeout: float = Field(
        3600.0,
        ge=0,
        description="Seconds a job may take until its response begins, or an agent to delete files or to finish an "
        "upload; 0 for no limit. For its other responses (files, logs, the beginning of archives), and between two "
        "pieces of one, an agent has at most 120.",
    )
    body_timeout: float = Field(
        30.0, ge=0, description="Seconds a client has to send a whole JSON body; 0 for no limit."
    )
    upload_timeout: float = Field(
        75.0,
        ge=0,
        description="Seconds for which a client may pause in an upload, an archive, or the body of a request to a job "
        "that has not begun to respond; 0 for no limit.",
    )
    body_memory: int = Field(
        64 * MIB,
        ge=2 * MIB,
        description="Bytes of JSON bodies that a worker holds while they arrive; beyond it the largest are refused.",
    )
    max_head: int = Field(65536, ge=1024, description="Largest request head, in bytes.")

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(entry) for entry in value)

    @field_validator("job_domain")
    @classmethod
    def _domain(cls, value: str | None) -> str | None:
        return check_domain(value) if value else None

    @field_validator("job_domain_only")
    @classmethod
    def _only_with_a_domain(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("job_domain", "unknown") is None:
            raise ValueError("needs control.job_domain, the domain under which jobs have names of their own")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry != "unix":
                ipaddress.ip_network(entry, strict=False)
        return value


class Identity(Section):
    """Name and identifier of this process."""

    name: str | None = Field(None, max_length=128, description="Human-friendly name (optional), up to 128 characters.")
    uid: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Unique identifier. Arbitrary non-empty string of at most 128 printable characters.",
    )

    @field_validator("name", "uid")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("printable characters are expected")
        return value


def _usable_tokens(value: Tokens) -> Tokens:
    """Refuse tokens that protect nothing; the error does not repeat them."""
    for token in value.values() if isinstance(value, dict) else value:
        problem = problem_of(token)
        if problem is not None:
            raise ValueError(f"tokens that nobody can guess are expected; {problem}")
    return value


class RouterServer(Section):
    """The endpoint agents connect to."""

    enabled: bool = Field(True, description="Enable router server (passive) mode so agents can connect as clients.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8889, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    accept_tokens: Annotated[Tokens, AfterValidator(_usable_tokens)] = Field(
        (),
        description="List of valid client tokens, or a mapping of each agent's uid to its own token, so that no agent "
        "can pass for another. At least 8 characters each beyond loopback. Empty accepts any on loopback; beyond it, "
        "agents that were invited or whose key is in accept_keys.",
    )
    accept_keys: str | None = Field(
        None,
        description="Directory of public keys (NAME.key) of the agents that may link; files that are added or removed "
        "count at once. An agent whose key is there needs a token only if accept_tokens is set.",
    )
    curve: bool = Field(
        False, description="Encrypt links (CURVE) on loopback as well; beyond loopback they always are."
    )
    insecure: bool = Field(
        False,
        description="Listen beyond loopback without encryption: tokens, files and traffic can be read on the way.",
    )
    socket: str | None = Field(
        None,
        description="Unix socket where agents of this machine link ('ipc://PATH' in their client.address). Without it, "
        "agents.sock in state.run_dir; empty for none. The same tokens count as over tcp.",
    )
    socket_group: str | None = Field(
        None,
        description="Group whose members may link through server.socket (mode 0660); the socket's directory must be "
        "open to the group, too. Without it, only the router's own user may (mode 0600).",
    )
    max_agents: int = Field(
        32768, ge=1, description="Agents that one token may have, linked or away; further ones are refused."
    )
    max_absence: float = Field(
        7 * 86400.0,
        gt=0,
        description="Longest time in seconds that the router waits for an agent that is away, whatever the agent's "
        "jobs.keep_for and jobs.orphan_timeout say.",
    )
    heartbeat: float = Field(2.0, gt=0, description="Seconds between heartbeats of a quiet agent.")


class RouterState(Section):
    """Directories of the router."""

    dir: str | None = Field(
        None, description="Directory of the job table; chosen by XDG and systemd conventions when not set."
    )
    run_dir: str | None = Field(
        None, description="Directory of internal sockets; chosen by the same conventions when not set."
    )


class RouterJobs(Section):
    """The job table."""

    history: int = Field(100000, ge=0, description="Finished jobs to remember, in at most 128 MiB.")
    history_age: float = Field(
        30 * 86400.0,
        gt=0,
        description="Seconds to remember finished jobs; none is forgotten before the router has run for an hour.",
    )


class RouterConfig(Section):
    """Configuration of a router host."""

    client: RouterClient = RouterClient()
    control: RouterControl = RouterControl()
    fabric: Fabric = Fabric()
    identity: Identity = Identity()
    jobs: RouterJobs = RouterJobs()
    log: Log = Log()
    server: RouterServer = RouterServer()
    state: RouterState = RouterState()


_RECONNECT_DELAY_MAX = 8.0
"""Seconds. Agents are linked again within 10 s of a router's return: this and a `connect` that gives up after 2 s."""


class AgentClient(Section):
    """Routers that the agent dials."""

    enabled: bool = Field(True, description="Connect to routers.")
    address: str | tuple[str, ...] = Field(
        "127.0.0.1:8889",
        description="Router address 'host:port', or 'ipc://PATH' of the server.socket of a router on this machine, or "
        "a list of them.",
    )
    token: str = Field("", description="Token to present to routers.")
    router_key: str | tuple[str, ...] = Field(
        (),
        description="Public key of the router, or a list of keys to try: in Z85, or paths of files NAME.key. "
        "Links over tcp are encrypted when a key is known.",
    )
    key: str | None = Field(
        None, description="File of this agent's own key pair (NAME.key_secret); made under state.dir when not set."
    )
    insecure: bool = Field(
        False, description="Link to routers on other machines without encryption when their key is not known."
    )

    @field_validator("address")
    @classmethod
    def _addresses(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        if info.data.get("enabled", True):
            for address in [value] if isinstance(value, str) else value:
                router_endpoint(address)
        return value

    @field_validator("token")
    @classmethod
    def _filled_in(cls, value: str) -> str:
        problem = problem_of(value) if value else None
        if problem is not None:
            raise ValueError(f"a token is expected; this {problem.removeprefix('one ')}")
        return value

    exit_on_fail: bool = Field(False, description="Exit when a router refuses the connection or cannot be reached.")
    reconnect_delay: float = Field(
        1.0,
        gt=0,
        description="Longest delay (in seconds) before the first new attempt to connect; a tenth of it after a link "
        "was lost. It doubles with each failed attempt. The actual delay is a random part of it.",
    )
    reconnect_delay_max: float | None = Field(
        None,
        gt=0,
        description="Seconds at which that delay stops growing. When not set: 8, or eight times reconnect_delay if "
        "that is less.",
    )

    @property
    def longest_reconnect_delay(self) -> float:
        """`reconnect_delay_max`, or what it is when not set, seconds."""
        return self.reconnect_delay_max or min(_RECONNECT_DELAY_MAX, 8 * self.reconnect_delay)


class AgentControl(Section):
    """A small local API of the agent."""

    enabled: bool = Field(False, description="Enable the local API: info, connections, shutdown.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    allow_open: bool = Field(
        False, description="Permit an interface beyond loopback; whoever reaches it can stop the agent."
    )


class AgentLimits(Section):
    """Ceilings for every job; a job may ask for less."""

    timeout: float | None = Field(None, gt=0, description="Seconds a job may run.")
    memory: int | None = Field(None, gt=0, description="Bytes of memory of a job's process tree.")
    cpu_seconds: float | None = Field(None, gt=0, description="CPU seconds of a job's process tree.")
    open_files: int | None = Field(None, gt=0, description="Open files per process of a job.")
    processes: int | None = Field(None, gt=0, description="Processes of a job.")
    sandbox_size: int | None = Field(None, gt=0, description="Bytes in a job's sandbox.")


class AgentJobs(Section):
    """Jobs on this agent."""

    root: str | None = Field(None, description="Directory of the sandboxes; under state.dir when not set.")
    max: int | None = Field(None, ge=1, description="Jobs at the same time; no limit when not set.")
    background_threads: int = Field(4, ge=1, description="Threads for file operations.")
    keep_for: float = Field(0.0, ge=0, description="Seconds for which jobs outlive their agent; 0 ends them with it.")
    orphan_timeout: float = Field(
        600.0, gt=0, description="Seconds without a link to any router after which the agent ends its jobs."
    )
    sync_uploads: bool = Field(
        False, description="Sync uploaded files to disk (fsync) before they get their names and the upload is answered."
    )
    log_limit: int = Field(64 * MIB, ge=4096, description="Bytes kept of each of a job's logs.")
    cgroup: str = Field(
        "auto",
        description="Control groups (cgroup v2) for jobs: auto uses what is delegated to the agent, off none; or the "
        "directory of a group that the agent may use.",
    )
    home: Literal["agent", "sandbox"] = Field(
        "agent", description="HOME of jobs: the agent's own, or each job's sandbox. A start may override it."
    )
    limits: AgentLimits = AgentLimits()

    @field_validator("cgroup", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """Take False as ``off``: that is what YAML makes of ``off`` without quotes."""
        return "off" if value is False else value

    @field_validator("cgroup")
    @classmethod
    def _known_or_a_directory(cls, value: str) -> str:
        if value not in ("auto", "off") and not value.startswith("/"):
            raise ValueError("must be 'auto', 'off' or the absolute path of a control group's directory")
        return value


class AgentServer(Section):
    """The endpoint routers connect to."""

    enabled: bool = Field(False, description="Enable agent server mode so routers can connect.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8890, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    accept_tokens: Annotated[Tokens, AfterValidator(_usable_tokens)] = Field(
        (),
        description="List of valid router tokens, or a mapping of each router's uid to its own. At least 8 characters "
        "each beyond loopback. Empty accepts any on loopback; beyond it, routers whose key is in accept_keys.",
    )
    accept_keys: str | None = Field(
        None,
        description="Directory of public keys (NAME.key) of the routers that may link; files that are added or removed "
        "count at once. A router whose key is there needs a token only if accept_tokens is set.",
    )
    curve: bool = Field(
        False, description="Encrypt links (CURVE) on loopback as well; beyond loopback they always are."
    )
    insecure: bool = Field(
        False,
        description="Listen beyond loopback without encryption: tokens, files and traffic can be read on the way.",
    )


class AgentState(Section):
    """Directory of the agent."""

    dir: str | None = Field(None, description="Directory for identity, sandboxes and the keeper's socket.")


class AgentFabric(Fabric):
    """Streams between router and agent."""

    heartbeat: float = Field(2.0, gt=0, description="Seconds between heartbeats of a quiet router.")


class AgentConfig(Section):
    """Configuration of an agent."""

    client: AgentClient = AgentClient()
    control: AgentControl = AgentControl()
    fabric: AgentFabric = AgentFabric()
    identity: Identity = Identity()
    jobs: AgentJobs = AgentJobs()
    log: Log = Log()
    properties: dict[str, Any] = Field(
        default_factory=dict, description="Properties of this agent, for jobs and placement."
    )
    server: AgentServer = AgentServer()
    state: AgentState = AgentState()


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key of a configuration with its pydantic field."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every dotted name of a section, outer before inner, with what it is for."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield f"{prefix}{name}", (section.__doc__ or "").strip()
            yield from sections(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[Section] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
