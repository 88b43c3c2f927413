"""Why a job waits, has ended or cannot be reached, in words, from what the router knows of it and of its agents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from prouter.broker.jobs.entry import Entry
from prouter.broker.links.link import Link
from prouter.broker.placing.occupancy import Occupancy
from prouter.broker.placing.placement import choose, matching, offering, resources_of
from prouter.broker.queue.item import Item, QueueState
from prouter.errors import PRouterError
from prouter.jobs import State

__all__ = ["Finding", "explain_job", "explain_waiting"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        ok: whether it is as it should be.
        text: what was found.
        todo: what to do about it; None if nothing is to be done.
    """

    ok: bool
    text: str
    todo: str | None = None

    def told(self) -> dict[str, Any]:
        """The finding as a map."""
        return {"ok": self.ok, "text": self.text, "todo": self.todo}


def explain_waiting(
    item: Item, position: int | None, links: Iterable[Link], occupancy: Occupancy, reserved: str, now: float
) -> Iterator[Finding]:
    """Say why a job is in the queue.

    Args:
        position: its place in the queue; None once an agent was chosen.
        reserved: uid of the agent that is kept free for it; empty without one.
        now: seconds since the epoch.
    """
    if item.state is QueueState.ASSIGNED:
        yield Finding(True, "an agent was chosen and is being asked to create the job")
        return
    left = max(0.0, item.until - now)
    yield Finding(False, f"the job waits in the router's queue, at position {position}, for at most {left:.0f} s more")
    if reserved:
        yield Finding(True, f"agent '{reserved}' takes no other job until there is enough space on it for this one")
    yield _why_no_agent(item, list(links), occupancy, now)


def _why_no_agent(item: Item, links: list[Link], occupancy: Occupancy, now: float) -> Finding:
    selector = item.shape.selector
    try:
        suitable = offering(matching(links, selector), selector.get("template"))
        avoided = [link for link in suitable if item.avoids(link.connection, now)]
        if avoided and len(avoided) == len(suitable):
            return _avoided(item, avoided[0], now)
        link = choose((link for link in suitable if link not in avoided), occupancy, selector)
    except PRouterError as error:
        told = (
            error.detail if error.code == "not_found" else error.detail.partition("; ")[0]
        )  # What to do is in `todo`.
        return Finding(False, told, _todo(error, bool(resources_of(selector))))
    if link is None:
        return Finding(False, "every agent that could take it is away", "wait until one is back, or start another")
    return Finding(True, f"agent '{link.info.uid}' has space: the jobs before this one in the queue come first")


def _avoided(item: Item, link: Link, now: float) -> Finding:
    """Say why no agent can create the job now, by the answer of one of them: all that could take it have failed to."""
    refusal = item.refusals[link.connection]
    text = f"agent '{link.info.uid}' could not create it: {refusal.text}"
    if refusal.again == inf:
        return Finding(
            False, f"{text}; it is not asked again", "remove the job, and create it as the agent can take it"
        )
    return Finding(
        False, f"{text}; it is asked again in {max(0.0, refusal.again - now):.0f} s", "mend that on the agent"
    )


def _todo(error: PRouterError, wants_resources: bool) -> str | None:
    if error.code == "not_found":
        return "start an agent that fits, or ask for less; if none comes, the job ends when its time is up"
    if error.code == "limit_reached":
        return "wait until jobs end there, or add agents" + (", or ask for less" if wants_resources else "")
    return None


def explain_job(entry: Entry, link: Link | None) -> Iterator[Finding]:
    """Describe the state of a job that an agent has, or that has ended."""
    record = entry.record
    if entry.ended:
        error = f": {record.error}" if record.error else ""
        yield Finding(record.exit_code == 0, f"{record.ending}{error}")
        return
    if link is None or not link.up:
        text = "its agent is out of reach; the router waits for it, and requests to the job wait or get 503"
        yield Finding(False, text, "check that the agent runs and reaches the router's port for agents")
    elif link.draining:
        yield Finding(True, "its agent is draining: it takes no new jobs, and this one goes on")
    if entry.stopping or entry.removal:
        yield Finding(True, "it is being stopped")
    yield _state(entry)


def _state(entry: Entry) -> Finding:
    record = entry.record
    if record.queue is not None:
        return Finding(False, f"it was started and waits in the queue of its agent's cluster: {record.queue['reason']}")
    if record.state is State.NEW:
        text = "it was created and not started: it waits for files and a start, and requests to it wait or get 503"
        return Finding(False, text, f"POST {record.path}/start starts it")
    if record.state is State.PENDING:
        text = "it was started, and its agent waits for its server: it has to listen on the port that it was given"
        return Finding(False, text, "its stderr tells what it does")
    if record.endpoint is None:
        text = "it runs and has no HTTP server: requests below its http/ get 502"
        return Finding(True, text, "if it should have one, start it with expose")
    return Finding(True, "it runs, and its server was found")
