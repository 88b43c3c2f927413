"""One creation of a job: its state, and which state may follow which.

`NEXT` is the table, `Creation.change` the only way from one state to the next::

    NEW ──► DIALLING ──► RESERVED ──► CALLED ──► CREATED ──► ANSWERED
     ├────► PLACING ──────▲ ▲ │         ▲           ▲
     ├──────────────────────┘ └─────────│───────────┤
     ├──────────────────────────────────┘           │
     └──────────────────────────────────────────────┘

    CALLED ──► RESERVED: the agent has no space after all, and another one has, or the job may wait in the queue.
    FAILED may follow every state but ANSWERED.

* NEW: the request was read. If an agent is free, RESERVED follows at once. If the key is known, its job is: CREATED
  follows if the job table has the job, else CALLED.
* DIALLING: the router dials the agent at the address of the request.
* PLACING: every agent that could take the job is away; the creation waits for one of them, for `control.hold` seconds.
* RESERVED: agent and uid are chosen, and the job counts for the agent; or no agent has space, and the job is about to
  be queued. No agent has the job yet. A key that a client sent is claimed at agents that other routers share
  (`prouter.broker.creations.claims`): an earlier claim for it replaces agent and uid, and if the table has that claim's
  job already, CREATED follows. Then the store writes key and uid. A job that is queued is CREATED next.
* CALLED: the agent was asked to create the job. From here on the key gives this job, also after a restart.
* CREATED: the table holds the job's record, and the store is writing it. A client that hears of the job now finds it
  again after a crash.
* ANSWERED, FAILED: the callers have their reply. A creation that fails after its uid was chosen gives the job up: the
  key is free again, and if an agent reports the job, it is told to remove it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from prouter.broker.base.env import Done
from prouter.broker.base.timers import Timer
from prouter.broker.creations.claims import shared_key
from prouter.broker.links.link import Link
from prouter.broker.queue.requests import waiting
from prouter.errors import InvalidRequest, PRouterError

__all__ = ["NEXT", "OVER", "Creation", "CreationState"]


class CreationState(Enum):
    """State of a creation, as drawn at the top of the module."""

    NEW = "new"
    DIALLING = "dialling"
    PLACING = "placing"
    RESERVED = "reserved"
    CALLED = "called"
    CREATED = "created"
    ANSWERED = "answered"
    FAILED = "failed"


_NEW, _DIALLING, _PLACING, _RESERVED, _CALLED, _CREATED, _ANSWERED, _FAILED = CreationState

NEXT: dict[CreationState, frozenset[CreationState]] = {
    _NEW: frozenset({_DIALLING, _PLACING, _RESERVED, _CALLED, _CREATED, _FAILED}),
    _DIALLING: frozenset({_RESERVED, _FAILED}),
    _PLACING: frozenset({_RESERVED, _FAILED}),
    _RESERVED: frozenset({_CALLED, _CREATED, _FAILED}),
    _CALLED: frozenset({_CREATED, _RESERVED, _FAILED}),
    _CREATED: frozenset({_ANSWERED, _FAILED}),
    _ANSWERED: frozenset(),
    _FAILED: frozenset(),
}
"""The states that may follow each state."""

OVER = frozenset({_ANSWERED, _FAILED})
"""States after which nothing happens any more."""


class Creation:
    """One job being created.

    Attributes:
        state: changed by `change` alone.
        selector: which agent the request asks for.
        key: of the request; the same key gives the same job.
        digest: of the request, to recognize another request with the same key; empty if it is not known.
        owner: name of the access token with which the request came; None without one.
        template: the template by which the job will be started; None without one.
        callers: who get the reply; more than one when the request was repeated.
        timeout: seconds that the job may wait in the queue; None if it is not to be queued.
        start: ``request`` and ``key`` of the start of a job that may be queued; None if it is started later.
        uid: of the job, empty before one was chosen. An agent with a warm job gives that one's uid instead.
        link: the agent chosen, None before.
        timer: ends the state PLACING.
        claim_until: until when it tries to claim its key in place of a job that nobody can get; None before it tries.
    """

    def __init__(
        self,
        name: str,
        selector: dict[str, Any],
        key: str,
        digest: str,
        caller: Done,
        owner: str | None = None,
        template: str | None = None,
    ) -> None:
        self.state = _NEW
        self.name = name
        self.selector = selector
        self.key = key
        self.digest = digest
        self.owner = owner
        self.template = template
        self.callers = [caller]
        self.timeout: float | None = None
        self.start: dict[str, Any] | None = None
        self.uid = ""
        self.link: Link | None = None
        self.timer: Timer | None = None
        self.claim_until: float | None = None

    @classmethod
    def of(cls, args: dict[str, Any], caller: Done) -> Creation:
        """Read the arguments of ``jobs.create``.

        Raises:
            InvalidRequest: some that are needed are missing.
        """
        name, selector, key = map(args.get, ("name", "agent", "key"))
        if not isinstance(name, str) or not isinstance(selector, dict) or not isinstance(key, str) or not key:
            raise InvalidRequest("Invalid request: name, agent and key are needed")
        digest, owner, template = (
            value if isinstance(value, str) else None for value in map(args.get, ("digest", "owner", "template"))
        )
        creation = cls(name, selector, key, digest or "", caller, owner, template)
        creation.timeout, creation.start = waiting(args)
        return creation

    @property
    def origin(self) -> dict[str, str | None]:
        """Owner, hashed key and digest of the request, as the job's record has them."""
        key = shared_key(self.key) if self.digest else None
        return {"owner": self.owner, "key": key, "digest": self.digest or None}

    def change(self, state: CreationState) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: `state` may not follow the present one; a programming error.
        """
        if state not in NEXT[self.state]:
            raise RuntimeError(f"creation {self.key} cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def wishes(self) -> dict[str, Any]:
        """What the job asks of its agent while it waits in the queue: the selector, and its template."""
        return self.selector if self.template is None else {**self.selector, "template": self.template}

    @property
    def over(self) -> bool:
        """Whether the callers have their reply."""
        return self.state in OVER

    def reply(self, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        """Give all callers the same reply."""
        for caller in self.callers:
            caller(value, error, now)
