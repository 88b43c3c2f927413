"""Where jobs are: a worker's cache of routes, kept up to date by the broker's events."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from gevent.event import Event

from prouter.jobs import JobRecord

__all__ = ["JobRoute", "RouteCache"]

_MAX_ROUTES = 65536
"""Routes cached per worker."""


class JobRoute:
    """The route to one job. While it is cached, the broker's events change it in place.

    Attributes:
        connection: uid of the agent's connection.
        record: the job's newest known record.
        up: whether its agent can be reached.
        prefix: the job's public prefix as bytes, ``/jobs/<connection>/<job>/http``.
        client: the first part of the job's path: its connection, unless it was queued.
        waiters: called after every change.
    """

    __slots__ = ("client", "connection", "prefix", "record", "up", "waiters")

    def __init__(self, connection: str, record: JobRecord, up: bool) -> None:
        self.connection = connection
        self.client = record.client or connection
        self.record = record
        self.up = up
        self.prefix = f"{record.path}/http".encode("ascii")
        self.waiters: set[Callable[[], None]] = set()

    def changed(self) -> None:
        """Call all waiters."""
        for waiter in list(self.waiters):
            waiter()

    def wait_for_change(self, deadline: float) -> None:
        """Block the greenlet until something changed, but for a second at most.

        The limit is there because another object may hold the route by then: a relinked broker empties the cache.

        Args:
            deadline: monotonic time until which to wait at most.
        """
        changed = Event()
        self.waiters.add(changed.set)
        try:
            changed.wait(max(0.0, min(deadline - time.monotonic(), 1.0)))
        finally:
            self.waiters.discard(changed.set)


class RouteCache:
    """Routes by connection and job.

    Args:
        ask: asks the broker for the record of (connection, job); blocks the greenlet and raises what the broker says.
        is_up: whether the agent behind a connection can be reached.
    """

    def __init__(self, ask: Callable[[str, str], JobRecord], is_up: Callable[[str], bool]) -> None:
        self._ask = ask
        self._is_up = is_up
        self._routes: OrderedDict[tuple[str, str], JobRoute] = OrderedDict()
        self._asked: Counter[str] = Counter()
        """Jobs whose routes the broker is being asked for."""
        self._updates: dict[str, JobRecord] = {}
        """Records of those jobs that events brought meanwhile."""

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._routes

    def get(self, connection: str, job: str) -> JobRoute | None:
        """Return the route if it is cached."""
        return self._routes.get((connection, job))

    def find(self, connection: str, job: str) -> JobRoute:
        """Return the route, and ask the broker for it if it is not cached. Blocks the greenlet then.

        Raises:
            NotFound: no such connection or job.
        """
        known = self._routes.get((connection, job))
        if known is not None:
            return known
        self._asked[job] += 1
        try:
            record = self._ask(connection, job)
            update = self._updates.get(job)
        finally:
            self._asked[job] -= 1
            if not self._asked[job]:
                del self._asked[job]
                self._updates.pop(job, None)
        known = self._routes.get((connection, job))
        if known is not None:
            return known  # another request asked at the same time, and all have to watch one object
        if update is not None and update.revision >= record.revision:
            record = update  # an event was handled before this greenlet got the reply
        route = JobRoute(record.connection, record, self._is_up(record.connection))
        self._routes[(connection, job)] = route
        if len(self._routes) > _MAX_ROUTES:
            self._routes.popitem(last=False)
        return route

    def clear(self) -> list[JobRoute]:
        """Empty the cache and return what was in it."""
        routes, self._routes = self._routes, OrderedDict()
        return list(routes.values())

    def job_changed(self, record: JobRecord) -> None:
        """Apply a job's new record."""
        if record.uid in self._asked:
            self._updates[record.uid] = record
        for first in {record.connection, record.client or "", ""}:
            route = self._routes.get((first, record.uid))
            if route is not None:  # the broker's events come in order, so a lower revision is newer, too
                route.record = record
                if route.connection != record.connection:  # It leaves the queue for an agent.
                    route.connection, route.up = record.connection, self._is_up(record.connection)
                route.changed()

    def link_changed(self, connection: str, up: bool) -> None:
        """Apply that an agent can be reached again, or no longer."""
        for route in self._routes.values():
            if route.connection == connection:
                route.up = up
                route.changed()
