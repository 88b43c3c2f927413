"""Claims of idempotency keys: which job a key gives, so that several routers create one job for it.

Routers know nothing of each other, but they share agents. Before a router creates a job for a client's key, it claims
the key at some agents. Each agent keeps the first claim, and tells it to every router that comes later.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

__all__ = ["Claim", "Claims"]

_MOST = 20_000
"""Claims kept, the oldest are forgotten first. They matter until the routers have heard of the job itself."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The job that a key gives.

    Attributes:
        digest: tells the request from others with the same key.
        job, connection: uid of the job, and uid of its agent's connection.
        made: when this agent heard of it, by the monotonic clock.
    """

    digest: str
    job: str
    connection: str
    made: float = field(default_factory=time.monotonic, compare=False)


class Claims:
    """The claims that one agent keeps, in memory."""

    def __init__(self, most: int = _MOST) -> None:
        self._claims: OrderedDict[str, Claim] = OrderedDict()
        self._most = most

    def claim(self, key: str, claim: Claim, instead: str = "") -> Claim:
        """Keep a claim if the key has none; return the claim that the key has now.

        Args:
            instead: uid of a job that nobody can get any more; a claim for that one is replaced.
        """
        known = self._claims.get(key)
        if known is not None and known.job != instead:
            return known
        self._claims[key] = claim
        if len(self._claims) > self._most:
            self._claims.popitem(last=False)
        return claim
