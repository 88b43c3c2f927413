"""Configuration keys of a router: one model per section, one field with its description per key."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from prouter.addresses import split_address
from prouter.config.proxy_users import GroupRoles, UserRole, check_user_field
from prouter.config.quotas import RouterLimits, RouterQueue
from prouter.config.section import MIB, Fabric, Identity, Log, Section, Tokens, usable_tokens
from prouter.host_names import check_domain, check_pattern, check_public_url
from prouter.targets import check_target

__all__ = [
    "RouterAudit",
    "RouterClient",
    "RouterConfig",
    "RouterControl",
    "RouterJobs",
    "RouterLimits",
    "RouterServer",
    "RouterState",
]


_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\*?")
"""A name of a field or cookie (a token by RFC 9110 section 5.6.2), ``*`` only at the end."""
_NEEDED = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade"})
"""Fields that frame requests."""


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
    user_header: str | None = Field(
        None,
        description="Field in which a trusted proxy names the user who is signed in there, such as X-Forwarded-User. "
        "Then every request needs a user or an access token.",
    )
    group_header: str | None = Field(
        None,
        description="Field in which it names that user's groups, separated by commas, such as X-Forwarded-Groups.",
    )
    group_roles: GroupRoles = Field(
        default_factory=dict,
        description="Role of the members of each group; who is in several has the highest.",
    )
    user_role: UserRole = Field("user", description="Role of users none of whose groups has one; 'none' refuses them.")
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
    sandbox_shares: bool = Field(
        False,
        description="Permit share links below /jobs/ when jobs have no host names of their own. Browsers then show the "
        "job in a sandbox: pages can read the job, and nothing else.",
    )
    url: str | None = Field(
        None,
        description="Public URL of the API and the dashboard, such as https://prouter.example.org: links lead there, "
        "and a job's own host name sends visitors who are not signed in there. Without it, links have the address "
        "that they were asked for under.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Host names under which the API and the dashboard answer, besides localhost and the machine's own "
        "names and IP addresses; '*.example.org' for all names below it, '*' for any.",
    )
    tokens: tuple[str, ...] = Field(
        (),
        description="Access tokens of the HTTP API, each 'NAME:ROLE:sha256:HASH' with a role of viewer, user, operator "
        "or admin and the token's SHA-256 in hex; besides those made with 'prouter token create'.",
    )
    drop_headers: tuple[str, ...] = Field(
        (),
        description="Fields of requests that jobs do not get, such as those in which something in front passes on its "
        "credentials: 'X-Auth-Token', or 'X-Auth-*' for all names that begin so.",
    )
    drop_cookies: tuple[str, ...] = Field(
        (),
        description="Cookies that jobs do not get, such as that of a login in front: '_oauth2_proxy*'. The names that "
        "begin so are meant where there is a '*'.",
    )
    allow_open: bool = Field(
        False,
        description="Permit an interface beyond loopback without access tokens, because something else checks access.",
    )
    allow_targets: tuple[str, ...] = Field(
        (),
        description="What the router may connect to for its users (bridges, agents of the type address): networks, "
        "addresses, names, '*.example.org', each perhaps with ':PORT' or ':PORT-PORT'; '*' is the default: all but "
        "link-local and other special addresses and the router's own ports.",
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

    @field_validator("allow_targets")
    @classmethod
    def _targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_target(entry) for entry in value)

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(entry) for entry in value)

    @field_validator("drop_headers", "drop_cookies")
    @classmethod
    def _names(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in value:
            if _NAME.fullmatch(name) is None:
                raise ValueError(f"{name!r} is no name; expected is one such as 'X-Auth-Token' or 'X-Auth-*'")
            if info.field_name == "drop_headers" and name.lower().replace("_", "-") in _NEEDED:
                raise ValueError(f"{name!r}: no request would reach a job whole without it")
        return value

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

    @field_validator("url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        return check_public_url(value) if value else None

    @field_validator("user_header", "group_header")
    @classmethod
    def _user_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        check_user_field(value)
        if info.field_name == "user_header" and not info.data.get("trusted_proxies", ("unknown",)):
            raise ValueError("needs control.trusted_proxies, the proxies that are believed: anybody can send the field")
        user = info.data.get("user_header", "unknown")
        if info.field_name == "group_header" and user is None:
            raise ValueError("needs control.user_header, the field that names the user")
        if info.field_name == "group_header" and str(user).lower() == value.lower():
            raise ValueError("is the same field as control.user_header; users and groups need one each")
        return value

    @field_validator("group_roles")
    @classmethod
    def _only_with_groups(cls, value: GroupRoles, info: ValidationInfo) -> GroupRoles:
        if value and info.data.get("group_header", "unknown") is None:
            raise ValueError("needs control.group_header, the field that names a user's groups")
        return value

    @field_validator("user_role")
    @classmethod
    def _not_nobody(cls, value: UserRole, info: ValidationInfo) -> UserRole:
        if value == "none" and info.data.get("user_header") and not info.data.get("group_roles", {"unknown": ""}):
            raise ValueError("is 'none' and control.group_roles is empty, so that no user is let in; give groups roles")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry != "unix":
                ipaddress.ip_network(entry, strict=False)
        return value


class RouterServer(Section):
    """The endpoint agents connect to."""

    enabled: bool = Field(True, description="Enable router server (passive) mode so agents can connect as clients.")
    interface: str = Field("127.0.0.1", description="Interface (ip address) to listen on.")
    port: int = Field(8889, ge=0, le=65535, description="Port number to use. Can be set to 0 to use any free port.")
    accept_tokens: Annotated[Tokens, AfterValidator(usable_tokens)] = Field(
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
    heartbeat: float = Field(
        2.0,
        gt=0,
        description="Seconds between heartbeats of a quiet agent; more with more than 4,000 agents (docs/scaling.md).",
    )


class RouterState(Section):
    """Directories of the router."""

    dir: str | None = Field(
        None, description="Directory of the job table; chosen by XDG and systemd conventions when not set."
    )
    access_dir: str | None = Field(
        None,
        description="Directory of access tokens, sessions, share links and the keys that sign them; state.dir when not "
        "set. Several routers that have the same directory let the same clients in.",
    )
    run_dir: str | None = Field(
        None, description="Directory of internal sockets; chosen by the same conventions when not set."
    )


class RouterJobs(Section):
    """The job table."""

    history: int = Field(
        100000, ge=0, description="Ended jobs to remember, with at most 128 MiB of records for each 100000."
    )
    history_age: float = Field(
        30 * 86400.0,
        gt=0,
        description="Seconds to remember finished jobs; none is forgotten before the router has run for an hour.",
    )


class RouterAudit(Section):
    """Who changed what through the HTTP API, and who opened which job: one JSON line each."""

    file: str | None = Field(
        None, description="File to which the lines are appended; it is opened again when it was moved away."
    )
    syslog: str | None = Field(
        None, description="Unix socket of the system's log to which the lines are sent, such as /dev/log."
    )


class RouterConfig(Section):
    """Configuration of a router host."""

    audit: RouterAudit = RouterAudit()
    client: RouterClient = RouterClient()
    control: RouterControl = RouterControl()
    fabric: Fabric = Fabric()
    identity: Identity = Identity()
    jobs: RouterJobs = RouterJobs()
    limits: RouterLimits = RouterLimits()
    log: Log = Log()
    queue: RouterQueue = RouterQueue()
    server: RouterServer = RouterServer()
    state: RouterState = RouterState()
