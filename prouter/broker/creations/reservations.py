"""Choice of agents for jobs that are being created, and what each job takes of its agent until the table has it."""

from __future__ import annotations

from prouter.broker.creations.state import Creation
from prouter.broker.creations.under_way import UnderWay
from prouter.broker.jobs.table import JobTable
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.placing.occupancy import Occupancy
from prouter.broker.placing.placement import choose, matching, offering, resources_at
from prouter.broker.queue.queued_jobs import QueuedJobs
from prouter.errors import AgentUnavailable, LimitReached, NotFound, PRouterError

__all__ = ["Reservations"]


class Reservations:
    """Chooses agents for creations, and reserves slots and resources there."""

    def __init__(
        self, links: Links, table: JobTable, occupancy: Occupancy, queued: QueuedJobs, under_way: UnderWay
    ) -> None:
        self._links = links
        self._table = table
        self._occupancy = occupancy
        self._queued = queued
        self._under_way = under_way

    def check(self, creation: Creation, link: Link) -> None:
        """Check that an agent, which the request has named by its address, can take the job.

        Raises:
            PRouterError: it cannot.
        """
        choose(offering([link], creation.template), self._occupancy, template=creation.template)

    def choose(self, creation: Creation) -> Link | None:
        """The agent for the job; None if it has to wait.

        Raises:
            PRouterError: there is none, and the job is not to be queued, or the queue is full.
        """
        may_wait = creation.timeout is not None
        try:
            if not (may_wait and self._queued.others_wait(creation.wishes)):
                links = offering(matching(self._links, creation.selector), creation.template)
                link = choose(links, self._occupancy, creation.selector, creation.template)
                if link is not None or not may_wait:
                    return link
        except (AgentUnavailable, LimitReached, NotFound):
            if not may_wait:
                raise
        self._queued.check_space(creation.start)
        return None

    def other(self, creation: Creation, link: Link) -> Link | None:
        """Another agent that has space, as far as is known; None without one."""
        try:
            links = offering(matching(self._links, creation.selector), creation.template)
            others = [one for one in links if one is not link and not one.full]
            return choose(others, self._occupancy, creation.selector, creation.template) if others else None
        except PRouterError:
            return None

    def take(self, creation: Creation, link: Link, uid: str) -> None:
        """Give the job to an agent under this uid; its slot and resources are taken there."""
        creation.link = link
        self._under_way.name(creation, uid)
        self._occupancy.reserve(link.connection)
        self._table.taken.take(uid, link.connection, resources_at(link, creation.selector, creation.template))

    def free(self, creation: Creation) -> None:
        """Free what `take` has taken. Idempotent."""
        self._under_way.unname(creation)
        if creation.link is not None:
            connection, creation.link = creation.link.connection, None
            self._occupancy.release(connection)
            if self._table.get(creation.uid) is None:
                self._table.taken.give_back(creation.uid)
