"""Offers of agents that may have space to the queue, a few in each event loop iteration."""

from __future__ import annotations

from functools import partial
from math import inf

from prouter.broker.base.env import Env
from prouter.broker.base.timers import Timer
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.placing.occupancy import Occupancy
from prouter.broker.placing.placement import resources_at, suits
from prouter.broker.queue.item import Shape
from prouter.broker.queue.job_queue import JobQueue
from prouter.broker.queue.order import Key

__all__ = ["Offers"]

_DECISIONS = 16
"""Offers that are looked at in one event loop iteration."""
_SHAPES = 256
"""Shapes of jobs that are looked at in each offer."""
_REST = 1.0
"""Seconds for which an agent is offered no job after it could not create one."""


class Offers:
    """Offers of agents to the jobs that wait."""

    def __init__(self, env: Env, links: Links, queue: JobQueue, occupancy: Occupancy) -> None:
        self._env = env
        self._links = links
        self._queue = queue
        self._occupancy = occupancy
        self._open: dict[str, Key | None] = {}
        """Connections of agents that may have space, each with the key in the queue after which to go on."""
        self._deciding: Timer | None = None
        self._resting: set[str] = set()

    def rest(self, connection: str, pause: float) -> None:
        """Offer an agent nothing for a moment: what kept it from creating one job may keep it from others.

        Args:
            pause: seconds after which it may be asked for that job again.
        """
        now = self._env.now
        if connection not in self._resting:
            self._resting.add(connection)
            self._env.timers.at(now + _REST, lambda _now: self._rested(connection))
        if _REST < pause < inf:
            self._env.timers.at(now + pause, lambda _now: self.offer(connection))

    def _rested(self, connection: str) -> None:
        self._resting.discard(connection)
        self.offer(connection)

    def offer(self, connection: str) -> None:
        """Note that an agent may have space; waiting jobs are looked at in the next event loop iterations."""
        if self._queue.waiting and connection not in self._resting:
            self._open[connection] = None
            self._decide_soon()

    def offer_all(self) -> None:
        """Note that any agent may have space for some job."""
        for link in self._links:
            self.offer(link.connection)

    def _fits(self, link: Link, shape: Shape) -> bool:
        return suits(link, shape.selector) and self._occupancy.has_space(link, resources_at(link, shape.selector))

    def _check_reserved(self, link: Link) -> None:
        """End the reservation of an agent that is too small now, because it was started again with other settings."""
        reserved = self._queue.reserved
        if reserved is not None and reserved[1] == link.connection and not suits(link, reserved[0].shape.selector):
            self._queue.withdraw(link.connection)

    def _decide_soon(self) -> None:
        if self._deciding is None:
            self._deciding = self._env.timers.at(self._env.now, self._decide)

    def _decide(self, _now: float) -> None:
        """Offer some agents that may have space to the queue, the others in the next event loop iterations."""
        self._deciding = None
        for _ in range(_DECISIONS):
            if not self._open:
                break
            connection, after = next(iter(self._open.items()))
            link = self._links.get(connection)
            more, placed = None, True
            if link is not None and link.up and link.listed is None and not (link.draining or link.full):
                self._check_reserved(link)
                if self._occupancy.has_slot(link) and connection not in self._resting:
                    fits, now = partial(self._fits, link), self._env.steady.deadline(self._env.now)
                    placed, more = self._queue.offer(connection, fits, now, after=after, most=_SHAPES)
            else:
                self._queue.withdraw(connection)
            if more is None:
                del self._open[connection]
            else:
                self._open[connection] = more
            if not placed and more is not None:
                break  # Many shapes were looked at in vain: other work comes first.
        if self._open:
            self._decide_soon()
