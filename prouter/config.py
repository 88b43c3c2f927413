"""Typed configuration of router and agent: defaults < file < environment < ``--set``.

Every key is a field below, with its description; a wrong key or value is refused with its name, where it came from and the
nearest valid key. Keys are dotted: ``control.port`` is ``control: {port: …}`` in YAML, ``PROUTER_CONTROL__PORT`` in the
environment.
"""

from __future__ import annotations

import ast
import difflib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

__all__ = [
    "AgentConfig",
    "ConfigError",
    "RouterConfig",
    "keys",
    "load_agent",
    "load_router",
]

MIB = 1024 * 1024
SECRET_KEYS = frozenset({"server.accept_tokens", "client.token", "control.tokens"})
"""Keys whose values are never shown."""
_PREFIX = "PROUTER_"
_NOT_KEYS = frozenset({"PROUTER_CONFIG"})


class ConfigError(ValueError):
    """The configuration is wrong; the text says which key, where it came from, and what would be right."""


class Section(BaseModel):
    """Base of all sections: strict about keys, never changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Log(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error", "fatal"] = Field("info", description="Output log level.")
    format: Literal["text", "json"] = Field("text", description="One line of text, or one JSON object, per event.")


class Fabric(Section):
    """Streams between router and agents."""

    window: int = Field(MIB, ge=65536, le=64 * MIB, description="Bytes in flight per stream and direction.")
    resume_timeout: float = Field(
        30.0, gt=0, description="Seconds streams survive a lost path between router and agent."
    )


class RouterClient(Section):
    """Agents that the router dials."""

    polling_delay: float = Field(
        10.0,
        gt=0,
        description="Delay (in seconds) between checking if active agent connections are idle and may be safely dropped.",
    )


class RouterControl(Section):
    """The endpoint for administration and jobs."""

    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8888, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    unix: str | None = Field(None, description="Path of a unix socket to listen on as well.")
    workers: int = Field(2, ge=1, description="Number of worker processes.")
    hold: float = Field(10.0, ge=0, description="Seconds a request waits for a starting job or an absent agent.")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Networks (CIDR) whose forwarded headers are believed; 'unix' stands for the unix socket."
    )
    job_domain: str | None = Field(None, description="Domain under which each job has a host name of its own.")
    tokens: tuple[str, ...] = Field((), description="Access tokens of the HTTP API.")
    allow_open: bool = Field(False, description="Permit an interface beyond loopback without access tokens.")
    drain_timeout: float = Field(30.0, ge=0, description="Seconds that requests in progress have when workers stop.")
    max_connections: int = Field(10000, ge=1, description="Client connections per worker.")
    response_timeout: float = Field(
        3600.0, ge=0, description="Seconds a job may take to begin its answer; 0 for no limit."
    )
    max_head: int = Field(65536, ge=1024, description="Largest request head, in bytes.")

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry != "unix":
                ipaddress.ip_network(entry, strict=False)
        return value


class Identity(Section):
    """Who this process is."""

    name: str | None = Field(None, description="Human-friendly name (optional).")
    uid: str | None = Field(
        None, min_length=1, max_length=200, description="Unique identifier. Arbitrary non-empty string."
    )


class RouterServer(Section):
    """The endpoint agents connect to."""

    enabled: bool = Field(True, description="Enable router server (passive) mode so agents can connect as clients.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8889, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    accept_tokens: tuple[str, ...] = Field(
        (), description="List of valid client tokens. Empty accepts any, which is allowed on loopback only."
    )
    heartbeat: float = Field(2.0, gt=0, description="Seconds between signs of life of a quiet agent.")


class RouterState(Section):
    """Where the router keeps things."""

    dir: str | None = Field(
        None, description="Directory of the job table; by XDG and systemd conventions when not set."
    )
    run_dir: str | None = Field(
        None, description="Directory of internal sockets; by the same conventions when not set."
    )


class RouterJobs(Section):
    """The job table."""

    history: int = Field(100000, ge=0, description="Finished jobs to remember.")
    history_age: float = Field(30 * 86400.0, gt=0, description="Seconds to remember finished jobs.")


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


class AgentClient(Section):
    """Routers that the agent dials."""

    enabled: bool = Field(True, description="Connect to routers.")
    address: str | tuple[str, ...] = Field(
        "127.0.0.1:8889", description="Router address 'host:port', or a list of them."
    )
    token: str = Field("", description="Token to present to routers.")
    exit_on_fail: bool = Field(False, description="Exit when a router refuses the connection or cannot be reached.")
    reconnect_delay: float = Field(1.0, gt=0, description="Delay (in seconds) before connecting again.")


class AgentControl(Section):
    """A small local API of the agent."""

    enabled: bool = Field(False, description="Enable the local API: info, connections, shutdown.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")


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
    keep_for: float = Field(0.0, ge=0, description="Seconds jobs outlive their agent; 0 ends them with it.")
    orphan_timeout: float = Field(600.0, gt=0, description="Seconds without any router after which jobs are ended.")
    log_limit: int = Field(64 * MIB, ge=4096, description="Bytes kept of each of a job's logs.")
    limits: AgentLimits = AgentLimits()


class AgentServer(Section):
    """The endpoint routers connect to."""

    enabled: bool = Field(False, description="Enable agent server mode so routers can connect.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8890, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    accept_tokens: tuple[str, ...] = Field(
        (), description="List of valid router tokens. Empty accepts any on loopback."
    )


class AgentState(Section):
    """Where the agent keeps things."""

    dir: str | None = Field(None, description="Directory for identity, sandboxes and the keeper's socket.")


class AgentFabric(Fabric):
    """Streams between router and agent."""

    heartbeat: float = Field(2.0, gt=0, description="Seconds between signs of life of a quiet router.")


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


Config = TypeVar("Config", RouterConfig, AgentConfig)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a configuration with its pydantic field."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def load_router(file: str | None, sets: Sequence[str], environ: Mapping[str, str]) -> RouterConfig:
    """The router's effective configuration. Raises `ConfigError`."""
    return _load(RouterConfig, file, sets, environ)


def load_agent(file: str | None, sets: Sequence[str], environ: Mapping[str, str]) -> AgentConfig:
    """The agent's effective configuration. Raises `ConfigError`."""
    return _load(AgentConfig, file, sets, environ)


def _load(model: type[Config], file: str | None, sets: Sequence[str], environ: Mapping[str, str]) -> Config:
    values: dict[str, Any] = {}
    for key, value in _from_file(file) + _from_environ(environ) + _from_sets(sets):
        node = values
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(str(error)) from error


def _flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict) and prefix != "properties.":
        return [pair for key, value in node.items() for pair in _flatten(value, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), node)]


def _from_file(file: str | None) -> list[tuple[str, Any]]:
    return _flatten(yaml.safe_load(Path(file).read_text()) or {}) if file else []


def _from_environ(environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    return [
        (name.removeprefix(_PREFIX).lower().replace("__", "."), _literal(value))
        for name, value in environ.items()
        if name.startswith(_PREFIX) and "__" in name and name not in _NOT_KEYS
    ]


def _from_sets(sets: Sequence[str]) -> list[tuple[str, Any]]:
    return [(key.strip(), _literal(value)) for key, _, value in (item.partition("=") for item in sets)]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
