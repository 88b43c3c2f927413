"""One connection to one agent: its state, and what the broker knows of the agent.

A link is known by its connection uid and outlives its paths. `NEXT` is the table of its states, `Link.change` the only
way from one to the next::

    AWAY ◄──► UP        UP ──► UP: a new path replaces one whose end nobody has noticed
      │       │
      └► GONE ◄┘

* UP: the agent is reachable over `Link.path`.
* AWAY: the path is lost, or an earlier broker knew the link. Calls and streams wait. An agent whose connection was
  *closed* is back soon or has died, which its keeper tells (`prouter.broker.links.admission`). One that fell *silent*
  may be behind a broken network, and its jobs go on until its own orphan timeout.
* GONE: the agent said goodbye, its keeper told that it died, another incarnation of it took over, or it stayed away for
  too long. Its jobs and streams are lost. An agent that comes back after that gets a new link.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol

from prouter.broker.base.switch import Path
from prouter.broker.base.timers import Timer
from prouter.broker.links.hello import AgentInfo
from prouter.broker.links.warm import Warm
from prouter.fabric.bounds import MAX_AGENT_REPLY
from prouter.fabric.calls import Caller

__all__ = ["NEXT", "Link", "LinkOwner", "LinkState"]

_NEAR, _FAR = 0.025, 0.05
"""Seconds of a round trip: an agent is near below the first, far above the second, and stays as it was in between."""


class LinkState(Enum):
    """Whether the agent is reachable; see the module's drawing."""

    AWAY = "away"
    UP = "up"
    GONE = "gone"


NEXT: dict[LinkState, frozenset[LinkState]] = {
    LinkState.AWAY: frozenset({LinkState.UP, LinkState.GONE}),
    LinkState.UP: frozenset({LinkState.UP, LinkState.AWAY, LinkState.GONE}),
    LinkState.GONE: frozenset(),
}
"""The states that may follow each state."""


class LinkOwner(Protocol):
    """What a link asks of the registry that it is in."""

    def path_lost(self, link: Link, reason: str, now: float, *, closed: bool) -> None:
        """Wait for an agent whose path is lost."""

    def drop(self, link: Link, reason: str, now: float) -> None:
        """Forget an agent that does not come back."""


class Link:
    """One connection to one agent.

    Attributes:
        state: changed by `change` alone.
        connection: its uid.
        mode: ``SERVER`` (the agent dialled the router) or ``CLIENT`` (the router dialled the agent).
        path: the agent's connection while the state is UP, else None.
        caller: calls that the agent has not answered yet.
        since: when the agent was linked first, seconds since the epoch.
        load: load per core, as the agent last told.
        running: how many jobs run, as the agent last told.
        used: what its jobs take of its resources, those of other routers included, as the agent last told.
        full: whether it has refused a job for want of space since it last told.
        warm: the jobs that the agent keeps ready.
        far: whether a round trip to the agent takes long.
        placed: jobs that the broker sent there since the agent told its load.
        draining: whether the agent takes no new jobs.
        listed: uids of jobs in the list that the agent sends when it links; None once the list is complete.
        confirmed: whether the agent has sent a complete list since this broker started.
        away: ends the wait for an agent that is away.
        encrypted: whether the last path of the link was.
        routers: to which routers the agent links, as it last told.
        leaving: whether the agent is about to stop and to come back; it finishes what is under way.
    """

    def __init__(self, owner: LinkOwner, connection: str, mode: str, info: AgentInfo, since: float) -> None:
        self._owner = owner
        self.state = LinkState.AWAY
        self.connection = connection
        self.mode = mode
        self.info = info
        self.since = since
        self.path: Path | None = None
        self.caller = Caller(MAX_AGENT_REPLY)
        self.load = 0.0
        self.running = 0
        self.used: dict[str, float] = {}
        self.full = False
        self.warm = Warm()
        self.placed = 0
        self.draining = info.draining
        self.listed: set[str] | None = set()
        self.confirmed = False
        self.away: Timer | None = None
        self.far = False
        self.encrypted = False
        self.leaving = False
        self.routers: list[dict[str, Any]] = []

    def change(self, state: LinkState, path: Path | None = None) -> None:
        """Go to the next state.

        Args:
            path: where the agent is from now on; with UP alone.

        Raises:
            RuntimeError: `state` may not follow the present one, or the path is missing; a programming error.
        """
        if state not in NEXT[self.state] or (state is LinkState.UP) is not (path is not None):
            raise RuntimeError(f"link {self.connection} cannot go from {self.state.value} to {state.value}")
        self.state, self.path = state, path

    @property
    def up(self) -> bool:
        """Whether the agent is reachable, and does not stop."""
        return self.state is LinkState.UP and not self.leaving

    @property
    def agent(self) -> dict[str, str]:
        """Uid and name of the agent."""
        return {"uid": self.info.uid, "name": self.info.name}

    @property
    def latency(self) -> float | None:
        """Seconds of the last measured round trip."""
        return self.path.session.latency if self.path is not None else None

    def describe(self) -> dict[str, Any]:
        """The link as workers are told of it."""
        return {
            "connection": self.connection,
            "agent": self.agent,
            "process": self.info.process,
            "mode": self.mode,
            "up": self.up,
            "far": self.far,
        }

    def measured(self) -> bool:
        """Take a measured round trip into account; return whether that changes `far`."""
        latency = self.latency
        if latency is None or (_NEAR <= latency <= _FAR):
            return False
        before, self.far = self.far, latency > _FAR
        return self.far is not before

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """See `Owner`."""
        if path is self.path:
            self._owner.path_lost(self, reason, now, closed=closed)

    def left(self, path: Path, reason: str, now: float) -> None:
        """See `Owner`. The broker waits for the agent only if its jobs outlive it."""
        if path is not self.path:
            return
        if self.info.keep_for > 0:
            self._owner.path_lost(self, f"goodbye: {reason}", now, closed=True)
        else:
            self._owner.drop(self, f"goodbye: {reason}", now)
