"""Configuration keys of an agent: one model per section, one field with its description per key."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from prouter.addresses import router_endpoint
from prouter.config.pool import templates_of
from prouter.config.section import MIB, Fabric, Identity, Log, Section, Tokens, usable_tokens
from prouter.resources import check_amounts
from prouter.template_requests import Template
from prouter.tokens import problem_of

__all__ = [
    "AgentClient",
    "AgentConfig",
    "AgentControl",
    "AgentFabric",
    "AgentJobs",
    "AgentLimits",
    "AgentServer",
    "AgentState",
]

_NO_USER = 2**32 - 2
_MOST_USERS = 65536
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
    fanout: int | None = Field(
        None,
        ge=1,
        description="To how many of the routers the agent links. When not set: to all. Another router takes the place "
        "of one that stays away.",
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
        "was lost. It grows by half with each failed attempt. The actual delay is a random part of it.",
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


def check_user(word: str) -> None:
    """Refuse what is neither a user's name, nor a uid, nor a range of uids.

    Raises:
        ValueError: it is none of these.
    """
    first, dash, last = word.partition("-")
    if not re.fullmatch(r"[\w.@+$\\-]+", word):
        raise ValueError(f"a user's name, a uid or a range such as 20000-20099 is expected, not {word!r}")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        return
    lowest, highest = int(first), int(last) if dash else int(first)
    if not 0 < lowest <= highest < _NO_USER:
        raise ValueError(f"{word!r}: uids are from 1 to {_NO_USER - 1}, the lower one first; root runs no jobs")
    if highest - lowest >= _MOST_USERS:
        raise ValueError(f"{word!r}: at most {_MOST_USERS} users are expected")


class AgentJobs(Section):
    """Jobs on this agent."""

    runner: str = Field(
        "local",
        description="Where jobs run: local for the agent's own machine, or the name of another runner that is "
        "installed; its options are the keys jobs.NAME.*.",
    )
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
    user: str | tuple[str, ...] | None = Field(
        None,
        description="User of the jobs of an agent that root runs: a name or uid that all jobs share; or a list of "
        "them, or a range of uids (20000-20099), each for one job at a time. When not set: the agent's own user.",
    )
    private_tmp: Literal["auto", "required", "off"] = Field(
        "auto",
        description="With jobs.user, a /tmp, /var/tmp and /dev/shm for each job alone: auto where the system allows "
        "it, required to refuse to start the agent otherwise, off for the machine's.",
    )
    env_pass: tuple[str, ...] | None = Field(
        None,
        description="Variables of the agent's environment that jobs get beside PATH, HOME, LANG, TZ and TERM: names "
        "and shell patterns. When not set: all but what looks like a secret ('*' stands for these).",
    )
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="What jobs may take by name: cpus, memory (bytes), gpus, licences. Jobs that ask for more than is "
        "left go elsewhere or wait. When not set, cpus and memory are those of the machine, or any amount if the "
        "runner reserves them elsewhere (Slurm); 0 offers none.",
    )
    pool: dict[str, Template] = Field(
        default_factory=dict,
        description="Templates of jobs by name, and how many jobs of each are kept started and ready: the keys of a "
        "start request (args, env, cwd, expose, limits, home …), size, which is 1 when not set, and "
        "resources, which each of the jobs takes of jobs.resources.",
    )
    limits: AgentLimits = AgentLimits()

    @field_validator("resources")
    @classmethod
    def _countable(cls, value: dict[str, float]) -> dict[str, float]:
        check_amounts(value)
        return {name: int(amount) if amount == int(amount) else amount for name, amount in value.items()}

    @field_validator("pool", mode="before")
    @classmethod
    def _usable_templates(cls, value: Any) -> Any:
        return templates_of(value) if isinstance(value, dict) else value

    @field_validator("user", mode="before")
    @classmethod
    def _numbers_are_words(cls, value: Any) -> Any:
        """Take uids as texts, as which ranges are written."""
        if isinstance(value, (list, tuple)):
            return tuple(str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("user")
    @classmethod
    def _ranges_and_names(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for word in () if value is None else (value,) if isinstance(value, str) else value:
            check_user(word)
        if value in ((), ""):
            raise ValueError("at least one user is expected; leave the key out for the agent's own user")
        return value

    @field_validator("private_tmp", mode="before")
    @classmethod
    def _off_means_off(cls, value: Any) -> Any:
        return "off" if value is False else value

    @field_validator("env_pass", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        """Take one name as a list of it."""
        return (value,) if isinstance(value, str) else value

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
    accept_tokens: Annotated[Tokens, AfterValidator(usable_tokens)] = Field(
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
