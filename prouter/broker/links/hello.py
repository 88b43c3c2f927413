"""What an agent says of itself in its HELLO or WELCOME, checked."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_NESTED, MAX_PLATFORM, MAX_PROPERTIES, MAX_ROUTERS, nested
from prouter.fabric.frames import VERSION
from prouter.jobs import TEMPLATE_NAME
from prouter.resources import read_amounts
from prouter.texts import shown

__all__ = [
    "CLIENT",
    "MAX_TEMPLATES",
    "NAME_LIMIT",
    "SERVER",
    "AgentInfo",
    "check_protocol",
    "connection_uid",
    "is_template",
]

SERVER = "SERVER"
"""Mode of a link: the agent dialled in."""
CLIENT = "CLIENT"
"""Mode of a link: the router dialled out."""

NAME_LIMIT = 128
"""Characters of an agent's uid, name and version."""
_MAX_CAPACITY = 8192
"""Bytes of slots and resources, as JSON, at most."""
MAX_TEMPLATES = 64
"""Templates of one agent, at most."""
_TEMPLATE = re.compile(TEMPLATE_NAME, re.ASCII)
_DAY = 86400.0
_STRICT = json.JSONEncoder(allow_nan=False)
_MOST_ROUTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent, as its HELLO or WELCOME describes it.

    Attributes:
        incarnation: 32 hex characters, new when the agent starts afresh.
        process: new at each start of the agent, also if it finds its jobs again; empty if the agent does not tell.
        slots: how many jobs may run at once, None for any number.
        slots_of_users: whether these are its users of jobs (``jobs.user``), rather than ``jobs.max``.
        routers: to how many routers it links.
        partial: whether there are routers to which it does not link (``client.fanout``).
        resources: what its jobs may take of each resource, by name.
        templates: names of the templates of jobs that it has (``jobs.pool``).
        keep_for: seconds that its jobs outlive it.
        orphan_timeout: seconds without a router after which it ends its jobs.
        admitted_by: mark of the token it presented (`prouter.tokens.Tokens.mark`); empty where none was asked for.
    """

    uid: str
    name: str
    incarnation: str
    platform: dict[str, Any]
    properties: dict[str, Any]
    version: str = ""
    process: str = ""
    slots: int | None = None
    draining: bool = False
    keep_for: float = 0.0
    orphan_timeout: float = 600.0
    admitted_by: str = ""
    slots_of_users: bool = False
    routers: int = 1
    partial: bool = False
    resources: dict[str, float] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    template_resources: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def from_hello(cls, body: dict[str, Any], admitted_by: str = "") -> AgentInfo:
        """Read a HELLO or WELCOME body.

        Raises:
            ProtocolError: something is missing or of the wrong kind.
        """
        incarnation = _text(body, "incarnation")
        if len(incarnation) != 32 or not all(c in "0123456789abcdef" for c in incarnation):
            raise ProtocolError("incarnation must be 32 hex characters")
        uid = _text(body, "uid")
        if not uid:
            raise ProtocolError("uid must not be empty")
        capacity = _mapping(body, "capacity", _MAX_CAPACITY)
        slots = capacity.get("max")
        if slots is not None and (not isinstance(slots, int) or isinstance(slots, bool) or slots < 0):
            raise ProtocolError("capacity.max must be a number or null")
        return cls(
            uid=uid,
            name=_text(body, "name", ""),
            incarnation=incarnation,
            platform=_mapping(body, "platform", MAX_PLATFORM),
            properties=_mapping(body, "properties", MAX_PROPERTIES),
            version=_text(body, "version", ""),
            process=_text(body, "process", ""),
            slots=slots,
            draining=body.get("draining") is True,
            keep_for=_seconds(body, "keep_for", 0.0),
            orphan_timeout=_seconds(body, "orphan_timeout", 600.0),
            admitted_by=admitted_by,
            slots_of_users=capacity.get("users") is True,
            routers=_routers(body),
            partial=body.get("partial") is True,
            resources=read_amounts(capacity.get("resources")),
            templates=_names(body, "templates"),
            template_resources=_amounts_by_name(body, "template_resources"),
        )

    def to_wire(self) -> dict[str, Any]:
        """The agent as a map, for the store; what it holds is not copied."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> AgentInfo:
        """Rebuild an agent from `to_wire`; fields that this version does not know are ignored."""
        known = {f.name: wire[f.name] for f in fields(cls) if f.name in wire}
        return cls(**{**known, "templates": tuple(known.get("templates", ()))})


_FIELDS = tuple(one.name for one in fields(AgentInfo))


def read_routers(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The routers to which an agent links, in its event: ``address`` (empty if the router dialled), ``uid``, ``up``.

    Raises:
        ProtocolError: the event is malformed.
    """
    routers = body.get("routers")
    if not isinstance(routers, list) or len(routers) > MAX_ROUTERS:
        raise ProtocolError(f"routers must be a list of at most {MAX_ROUTERS}")
    if not all(isinstance(router, dict) for router in routers):
        raise ProtocolError("each of the routers must be a map")
    return [
        {"address": _text(router, "address"), "uid": _text(router, "uid"), "up": router.get("up") is True}
        for router in routers
    ]


@lru_cache(maxsize=256)
def connection_uid(incarnation: str, mode: str) -> str:
    """The connection uid of an agent that is linked in `mode`: the same for as long as the agent lives.

    It is part of every job's path. The incarnation is a secret, which the uid does not reveal.
    """
    return hashlib.sha256(f"{incarnation}:{mode.lower()}".encode()).hexdigest()[:32]


def check_protocol(body: dict[str, Any]) -> str | None:
    """Why the peer's protocol version is not accepted; None if it is."""
    theirs = body.get("protocol")
    if theirs == VERSION:
        return None
    return f"protocol version {shown(theirs)} is not supported, this router speaks {VERSION}"


def _text(body: dict[str, Any], key: str, default: str | None = None) -> str:
    value = body.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ProtocolError(f"{key} must be a text of at most {NAME_LIMIT} characters")
    if len(value) > NAME_LIMIT:
        raise ProtocolError(f"{key} has {len(value)} characters, at most {NAME_LIMIT} are allowed")
    if not value.isprintable():
        raise ProtocolError(f"{key} has characters that cannot be printed")
    return value


def _mapping(body: dict[str, Any], key: str, most: int = 1024) -> dict[str, Any]:
    value = body.get(key)
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ProtocolError(f"{key} must be a map with texts as keys")
    if nested(value) > MAX_NESTED:
        raise ProtocolError(f"{key} must be nested at most {MAX_NESTED} levels deep")
    try:
        size = len(_STRICT.encode(value))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{key} must hold what JSON can say: {error}") from error
    if size > most:
        raise ProtocolError(f"{key} must have at most {most} bytes as JSON, not {size}")
    return value


def _routers(body: dict[str, Any]) -> int:
    value = body.get("routers", 1)  # Agents of earlier versions do not tell.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_ROUTERS:
        raise ProtocolError("routers must be a number")
    return value


def _names(body: dict[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TEMPLATES or not all(map(is_template, value)):
        raise ProtocolError(f"{key} must be a list of at most {MAX_TEMPLATES} names")
    return tuple(value)


def _amounts_by_name(body: dict[str, Any], key: str) -> dict[str, dict[str, float]]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATES or not all(map(is_template, value)):
        raise ProtocolError(f"{key} must be a map of at most {MAX_TEMPLATES} names")
    return {name: read_amounts(amounts) for name, amounts in value.items()}


def is_template(name: object) -> bool:
    """Whether an agent's template may have this name."""
    return isinstance(name, str) and _TEMPLATE.fullmatch(name) is not None


def _seconds(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 365 * _DAY:
        raise ProtocolError(f"{key} must be a number of seconds")
    return float(value)
