"""Slots and resources of agents that are taken, by what this router has placed and by the agents' last reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from prouter.broker.jobs.table import JobTable
from prouter.broker.links.link import Link
from prouter.resources import Amounts, fits

__all__ = ["Occupancy"]


class Occupancy:
    """Taken slots and resources of all agents.

    Attributes:
        table: all jobs.
        reserved: by connection, slots of jobs that are being created there.
        reservation: returns `kept_free`; set by the queue.
    """

    def __init__(self, table: JobTable) -> None:
        self.table = table
        self.reserved: Counter[str] = Counter()
        self.reservation: Callable[[], str] = str
        self.released: Callable[[str], object] = bool
        """Called with a connection on which a reserved slot is free again."""

    @property
    def kept_free(self) -> str:
        """Connection of the agent that takes no jobs but the one it is kept free for; empty without one."""
        return self.reservation()

    def jobs(self, link: Link) -> int:
        """How many slots are taken."""
        return max(len(self.table.live(link.connection)) + self.reserved[link.connection], link.running)

    def amounts(self, link: Link) -> Amounts:
        """What is taken of each resource. The agent knows other routers' jobs, this router its own newest ones."""
        own, told = self.table.taken.of(link.connection), link.used
        if not told:
            return own
        return {name: max(own.get(name, 0), told.get(name, 0)) for name in {*own, *told}}

    def has_slot(self, link: Link) -> bool:
        """Whether a slot is free, as far as is known."""
        return link.info.slots is None or self.jobs(link) < link.info.slots

    def has_space(self, link: Link, wanted: Amounts) -> bool:
        """Whether a slot is free and as much as `wanted` is left."""
        return self.has_slot(link) and fits(wanted, link.info.resources, self.amounts(link) if wanted else {})

    def fullness(self, link: Link, wanted: Amounts) -> float:
        """How full the agent is, from 0 to 1: the largest share of its slots, or of what is wanted."""
        shares = [self.jobs(link) / link.info.slots] if link.info.slots else []
        used = self.amounts(link)
        shares += [used.get(name, 0) / total for name in wanted if (total := link.info.resources.get(name))]
        return max(shares, default=0.0)

    def reserve(self, connection: str) -> None:
        """Take a slot for a job that is being created."""
        self.reserved[connection] += 1

    def release(self, connection: str) -> None:
        """Give the slot back: the job is in the table, or will not be created."""
        self.reserved[connection] -= 1
        if not self.reserved[connection]:
            del self.reserved[connection]
        self.released(connection)
