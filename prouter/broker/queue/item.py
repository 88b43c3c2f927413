"""One job in the queue: its state, and which state may follow which.

`NEXT` is the table, `Item.change` the only way from one state to the next::

    WAITING ◄──► ASSIGNED ──► PLACED ──► STARTING ──► OVER
       │             │           │                     ▲
       └─────────────┴───────────┴─────────────────────┘

* WAITING: no agent has the job. Only this router knows of it.
* ASSIGNED: an agent was chosen, and the job's resources are taken there. Once that is stored, the agent is asked to
  create the job. The job goes back to WAITING if the agent refuses, or is gone before it reported that it has the job.
* PLACED: the agent's record of the job is stored. From here on the job is never given to another agent.
* STARTING: the agent was asked to start the job, because the request for that came while it was queued. The call has
  the same id after a restart of the broker, and the agent carries it out once.
* OVER: the queue is done with the job: it belongs to its agent, it was removed, or its time was up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["NEXT", "Item", "QueueState", "Refusal", "Shape"]


class QueueState(Enum):
    """State of a queued job, as drawn at the top of the module."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    PLACED = "placed"
    STARTING = "starting"
    OVER = "over"


_WAITING, _ASSIGNED, _PLACED, _STARTING, _OVER = QueueState

NEXT: dict[QueueState, frozenset[QueueState]] = {
    _WAITING: frozenset({_ASSIGNED, _OVER}),
    _ASSIGNED: frozenset({_WAITING, _PLACED, _OVER}),
    _PLACED: frozenset({_STARTING, _OVER}),
    _STARTING: frozenset({_OVER}),
    _OVER: frozenset(),
}
"""The states that may follow each state."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a job needs of its agent. Jobs of one shape fit the same agents, so one answer holds for all of them.

    Attributes:
        text: the selector of the request and the template as JSON, by which shapes are compared.
        selector: the same as a map.
    """

    text: str
    selector: dict[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an agent did not create a job.

    Attributes:
        text: what it said.
        again: when it may be asked again, seconds since the epoch; infinite if its answer would be the same.
        pause: seconds between its answer and `again`.
    """

    text: str
    again: float
    pause: float


@dataclass(slots=True, eq=False)
class Item:
    """One job in the queue.

    Attributes:
        owner: the owner whose turn it uses; None for jobs that nobody owns.
        until: when its time is up, seconds since the epoch.
        since: when it was queued, seconds since the epoch.
        number: grows with every job that is queued, and orders jobs of one tag.
        tag: the round in which its owner's turn comes to it; see `prouter.broker.queue.order`.
        start: the request that starts the job, packed; None if none came yet.
        start_id: id by which the agent recognizes that request when it is repeated.
        connection: uid of the chosen agent's connection, empty while the job waits.
        refusals: by connection, the last answer of each agent that did not create the job although it has space.
        tries: how often its agent has failed to carry out its start.
        passed_at: when a job behind it was first placed before it, seconds since the epoch; None if none was.
    """

    uid: str
    name: str
    owner: str | None
    shape: Shape
    until: float
    since: float = 0.0
    number: int = 0
    tag: int = 0
    start: bytes | None = None
    start_id: str = ""
    connection: str = ""
    state: QueueState = _WAITING
    refusals: dict[str, Refusal] = field(default_factory=dict)
    tries: int = 0
    passed_at: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the order of the queue."""
        return self.tag, self.number

    def avoids(self, connection: str, now: float) -> bool:
        """Whether this agent is not to be asked (again yet)."""
        refusal = self.refusals.get(connection)
        return refusal is not None and now < refusal.again

    def change(self, state: QueueState) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        if state not in NEXT[self.state]:
            raise RuntimeError(f"queued job {self.uid} cannot go from {self.state.value} to {state.value}")
        self.state = state
