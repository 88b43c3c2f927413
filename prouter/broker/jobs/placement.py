"""Placement: which agent a new job goes to. Pure functions of the links."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prouter.broker.links.link import Link
from prouter.errors import AgentUnavailable, InvalidRequest, Limit, LimitReached, NotFound

__all__ = ["choose", "matching"]

_NAMED = 10
"""Most agents that an error names."""
_JOB_LOAD = 0.25
"""Load per core that a newly placed job counts for, until its agent has reported its load."""

Used = Callable[[Link], int]


def matching(links: Iterable[Link], selector: dict[str, Any]) -> list[Link]:
    """The links that a selector of type ``uid``, ``select`` or ``any`` allows, UP or AWAY.

    Raises:
        NotFound: there is none.
        InvalidRequest: the selector is malformed.
    """
    links = list(links)
    kind = selector.get("type")
    if kind in ("uid", "select"):
        uids = [selector.get("uid")] if kind == "uid" else selector.get("uids")
        if not isinstance(uids, list) or not uids:
            raise InvalidRequest("Invalid request: the agent's uid is missing")
        wanted = set(map(str, uids))
        found = [link for link in links if link.info.uid in wanted]
        if not found:
            asked = ", ".join(repr(str(uid)) for uid in uids)
            raise NotFound(f"no connected agent with uid {asked}; {_who_is_there(links)}")
        return found
    if kind == "any":
        properties = selector.get("properties") or {}
        found = [link for link in links if _has(link, properties)]
        if not found:
            if not links:
                raise NotFound(_who_is_there(links))
            raise NotFound(f"no connected agent has the properties {properties!r}; {_who_is_there(links)}")
        return found
    raise InvalidRequest(f"Invalid request: unknown agent type {kind!r}")


def _who_is_there(links: list[Link]) -> str:
    """The part of an error that tells which agents there are."""
    if not links:
        return "no agent is connected: start one with 'prouter agent', which logs why if it cannot reach this router"
    there = [link for link in links if link.up]
    uids = sorted({link.info.uid for link in there or links})
    more = f" and {len(uids) - _NAMED} more" if len(uids) > _NAMED else ""
    return f"{'connected agents' if there else 'agents that are away'}: {', '.join(uids[:_NAMED])}{more}"


def choose(candidates: Iterable[Link], used: Used) -> Link | None:
    """The least loaded link that is UP, accepts jobs and has a free slot; None if all that could take the job are AWAY.

    Args:
        used: tells how many slots of a link are taken.

    Raises:
        LimitReached: no link that is UP has a free slot.
        AgentUnavailable: all are draining.
    """
    links = list(candidates)
    willing = [link for link in links if not link.draining]
    if not willing:
        names = ", ".join(sorted({f"'{link.info.uid}'" for link in links}))
        raise AgentUnavailable(
            f"agent {names} is draining and takes no new job; choose another, or resume it", code="agent_draining"
        )
    there = [link for link in willing if link.up]
    free = [link for link in there if link.info.slots is None or used(link) < link.info.slots]
    if free:
        return min(free, key=lambda link: _burden(link, used))
    if there:
        names = ", ".join(sorted({f"'{link.info.uid}'" for link in there}))
        slots = sum(link.info.slots or 0 for link in there)
        key = "jobs.user" if all(link.info.slots_of_users for link in there) else "jobs.max"
        text = f"no free slot on agent {names}, which may have {slots} jobs ({key}); remove one, or try again later"
        raise LimitReached(text, retry_after=5, limit=Limit(key, slots))
    return None


def _burden(link: Link, used: Used) -> tuple[float, int, bool, str, str]:
    load = round(link.load + _JOB_LOAD * link.placed, 1)
    return load, used(link), link.mode == "CLIENT", link.info.uid, link.connection


def _has(link: Link, properties: dict[str, Any]) -> bool:
    own = link.info.properties
    return all(name in own and _same(own[name], value) for name, value in properties.items())


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal. Unlike in Python, true does not equal 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
