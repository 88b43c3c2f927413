"""Placement: which agent a new job goes to. Pure functions of the links."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prouter.broker.links.link import Link
from prouter.broker.placing.occupancy import Occupancy
from prouter.errors import AgentUnavailable, InvalidRequest, Limit, LimitReached, NotFound
from prouter.requirements import in_words, meets, same
from prouter.resources import Amounts, fits, lacking

__all__ = ["choose", "matching", "no_space", "offering", "resources_at", "resources_of", "suits"]

_NAMED = 10
"""Most agents that an error names."""
_JOB_LOAD = 0.25
"""Load per core that a newly placed job counts for, until its agent has reported its load."""


def matching(links: Iterable[Link], selector: dict[str, Any]) -> list[Link]:
    """The links that a selector of type ``uid``, ``select`` or ``any`` allows, UP or AWAY.

    Raises:
        NotFound, AgentUnavailable: there is none.
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
            raise _none(links, f"no connected agent with uid {asked}; {_who_is_there(links)}")
        return found
    if kind == "any":
        found = [link for link in links if suits(link, selector)]
        if not found:
            raise _none(links, _no_such_agent(links, selector))
        return found
    raise InvalidRequest(f"Invalid request: unknown agent type {kind!r}")


def suits(link: Link, selector: dict[str, Any]) -> bool:
    """Whether a selector allows this agent, and the agent, if it had no jobs, would have space for the job."""
    kind, template = selector.get("type"), selector.get("template")
    if template is not None and template not in link.info.templates:
        return False
    if kind == "uid":
        return link.info.uid == selector.get("uid")
    if kind == "select":
        return link.info.uid in (selector.get("uids") or ())
    own = link.info.properties
    properties, require = selector.get("properties") or {}, selector.get("require") or {}
    return (
        all(name in own and same(own[name], value) for name, value in properties.items())
        and meets(own, require)
        and fits(resources_at(link, selector), link.info.resources, {})
    )


def _no_such_agent(links: list[Link], selector: dict[str, Any]) -> str:
    """The text of the error when no agent suits a selector of type ``any``."""
    if not links:
        return _who_is_there(links)
    properties, require = selector.get("properties") or {}, selector.get("require") or {}
    asked = [f"has the properties {properties!r}"] if properties else []
    asked += [f"fulfils {in_words(require)}"] if require else []
    asked += [f"has {_told(resources_of(selector))} (jobs.resources)"] if resources_of(selector) else []
    return f"no connected agent {' and '.join(asked)}; {_who_is_there(links)}"


def offering(links: list[Link], template: str | None) -> list[Link]:
    """The links whose agents have a template; all of them if none is asked for.

    Raises:
        NotFound: there is none.
    """
    found = [link for link in links if template is None or template in link.info.templates]
    if not found:
        names = sorted({name for link in links for name in link.info.templates})
        there = f"templates there: {', '.join(names[:_NAMED])}" if names else "they have none"
        uids = ", ".join(sorted({f"'{link.info.uid}'" for link in links})[:_NAMED])
        raise NotFound(
            f"no agent has the template '{template}' (jobs.pool); agents: {uids}; {there}", code="no_template"
        )
    return found


def _none(links: list[Link], text: str) -> NotFound | AgentUnavailable:
    """The error when no agent suits; agents that link to some routers only (``client.fanout``) may be at others."""
    if any(link.info.partial for link in links):
        return AgentUnavailable(f"{text}; another router may have it", code="agent_elsewhere", retry_after=1)
    return NotFound(text)


def _who_is_there(links: list[Link]) -> str:
    """The part of an error that tells which agents there are."""
    if not links:
        return "no agent is connected: start one with 'prouter agent', which logs why if it cannot reach this router"
    there = [link for link in links if link.up]
    uids = sorted({link.info.uid for link in there or links})
    more = f" and {len(uids) - _NAMED} more" if len(uids) > _NAMED else ""
    return f"{'connected agents' if there else 'agents that are away'}: {', '.join(uids[:_NAMED])}{more}"


def choose(
    candidates: Iterable[Link],
    occupancy: Occupancy,
    selector: dict[str, Any] | None = None,
    template: str | None = None,
) -> Link | None:
    """The link to use of those that are UP, accept jobs and have space; None if all that could take the job are AWAY.

    Args:
        selector: only its `resources` and `strategy` are used. Without them the job needs a slot, and the least loaded
            agent gets it.
        template: agents with a warm job of this template come first.

    Raises:
        LimitReached: no link that is UP has a free slot and the resources.
        AgentUnavailable: all are draining.
    """
    links = list(candidates)
    willing = [link for link in links if not link.draining]
    if not willing:
        names = ", ".join(sorted({f"'{link.info.uid}'" for link in links}))
        raise AgentUnavailable(
            f"agent {names} is draining and takes no new job; choose another, or resume it", code="agent_draining"
        )
    strategy = (selector or {}).get("strategy")

    def wanted(link: Link) -> Amounts:
        return resources_at(link, selector or {}, template)

    there = [link for link in willing if link.up]
    free = [
        link for link in there if occupancy.has_space(link, wanted(link)) and link.connection != occupancy.kept_free
    ]
    if free:
        preference = _PREFERENCES.get(str(strategy), _burden)(occupancy, wanted)
        return min(free, key=lambda link: (not link.warm.ready(template), *preference(link)))
    if there:
        raise no_space(there, occupancy, wanted)
    return None


def resources_of(selector: dict[str, Any]) -> Amounts:
    """Return the resources that a selector asks for."""
    wanted = selector.get("resources")
    return wanted if isinstance(wanted, dict) else {}


def resources_at(link: Link, selector: dict[str, Any], template: str | None = None) -> Amounts:
    """Return the resources that a selector's job takes of an agent: those of its template there, then its own.

    Args:
        template: its name, if the selector does not say.
    """
    own = link.info.template_resources.get(str(template or selector.get("template")))
    return {**own, **resources_of(selector)} if own else resources_of(selector)


def no_space(links: list[Link], occupancy: Occupancy, wanted: Wanted) -> LimitReached:
    """The error when no link has space: it names a resource missing on agents with a free slot, else the slots."""
    with_slot = [link for link in links if occupancy.has_slot(link)]
    short = {name for link in with_slot for name in lacking(wanted(link), link.info.resources, occupancy.amounts(link))}
    if short and not any(occupancy.has_space(link, wanted(link)) for link in with_slot):
        name = min(short)
        least = min((wanted(link) for link in with_slot), key=lambda amounts: amounts.get(name, 0))
        most = max(link.info.resources.get(name, 0) for link in with_slot)
        text = f"no agent has {_told(least)} left; the job waits for that with 'queue', or try again later"
        return LimitReached(text, retry_after=5, limit=Limit(f"jobs.resources.{name}", most))
    names = _names(links)
    if with_slot:
        text = f"agent {names} is kept free for a job that has waited long in the queue; try again later"
        return LimitReached(text, retry_after=5)
    slots = sum(link.info.slots or 0 for link in links)
    key = "jobs.user" if all(link.info.slots_of_users for link in links) else "jobs.max"
    text = f"no free slot on agent {names}, which may have {slots} jobs ({key}); remove one, or try again later"
    return LimitReached(text, retry_after=5, limit=Limit(key, slots))


def _names(links: list[Link]) -> str:
    uids = sorted({f"'{link.info.uid}'" for link in links})
    return ", ".join(uids[:_NAMED]) + (f" and {len(uids) - _NAMED} more" if len(uids) > _NAMED else "")


def _told(wanted: Amounts) -> str:
    return ", ".join(f"{name} {amount:.15g}" for name, amount in wanted.items())


Preference = Callable[[Link], tuple[Any, ...]]
Wanted = Callable[[Link], Amounts]
"""What the job takes of an agent."""


def _burden(occupancy: Occupancy, _wanted: Wanted) -> Preference:
    """Prefer the least loaded machine."""

    def burden(link: Link) -> tuple[Any, ...]:
        load = round(link.load + _JOB_LOAD * link.placed, 1)
        return load, occupancy.jobs(link), link.mode == "CLIENT", link.info.uid, link.connection

    return burden


def _spread(occupancy: Occupancy, wanted: Wanted) -> Preference:
    """Prefer the emptiest agent."""

    def emptiness(link: Link) -> tuple[Any, ...]:
        fullness = occupancy.fullness(link, wanted(link))
        return fullness, occupancy.jobs(link), link.mode == "CLIENT", link.info.uid, link.connection

    return emptiness


def _pack(occupancy: Occupancy, wanted: Wanted) -> Preference:
    """Prefer the fullest agent that has space."""

    def fullness(link: Link) -> tuple[Any, ...]:
        full = occupancy.fullness(link, wanted(link))
        return -full, -occupancy.jobs(link), link.mode == "CLIENT", link.info.uid, link.connection

    return fullness


_PREFERENCES: dict[str, Callable[[Occupancy, Wanted], Preference]] = {"spread": _spread, "pack": _pack}
