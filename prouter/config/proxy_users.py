"""Rules for users whom a trusted proxy names: the fields in which it does so, and the roles of their groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Literal

__all__ = ["GroupRoles", "UserRole", "check_user_field", "loopback_among"]

GroupRoles = dict[str, Literal["viewer", "user", "operator", "admin"]]
"""The role of each group."""
UserRole = Literal["none", "viewer", "user", "operator", "admin"]
"""A role, or none at all."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
"""Without "_": clients could send a field that servers take for the same one, and no proxy would remove it."""
_TAKEN = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "authorization", "connection", "content-length", "content-type",
        "cookie", "date", "expect", "forwarded", "host", "idempotency-key", "keep-alive", "last-event-id", "origin",
        "range", "referer", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-forwarded-for",
        "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto", "x-real-ip", "x-request-id",
    }
)  # fmt: skip
"""Fields that mean something else, in any client's requests."""
_TAKEN_PREFIXES = ("access-control-", "if-", "proxy-", "sec-", "x-prouter-")


def check_user_field(name: str) -> str:
    """Return the name of a field in which a proxy may name users or groups.

    Raises:
        ValueError: it is no such name.
    """
    lower = name.lower()
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name for it; expected is one of letters, digits and '-': X-Forwarded-User")
    if lower in _TAKEN or lower.startswith(_TAKEN_PREFIXES):
        raise ValueError(f"{name!r} means something else, in every client's requests; use one such as X-Forwarded-User")
    return name


def loopback_among(trusted_proxies: Iterable[str]) -> str | None:
    """Return the first network from which every user and job of this machine can connect; None if there is none.

    Args:
        trusted_proxies: networks, and ``unix`` for the unix socket, which has its own permissions.
    """
    loopback = ip_network("127.0.0.0/8"), ip_network("::1/128")
    for entry in trusted_proxies:
        if entry == "unix":
            continue
        network = ip_network(entry, strict=False)
        if any(network.version == one.version and network.overlaps(one) for one in loopback):
            return entry
    return None
