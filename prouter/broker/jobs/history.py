"""Bounds of the history: jobs that ended the longest ago are forgotten, and removed from their agents.

A removal deletes files, and a wall clock that is wrong for a while must not cause it. So jobs age by the router's own
clock (`prouter.broker.base.steady`), and none is removed for its age before the router has run for an hour.
"""

from __future__ import annotations

import logging
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.links import Links
from prouter.errors import PRouterError

__all__ = ["History"]

log = logging.getLogger("prouter.broker")

_EVERY = 60.0
"""Seconds between checks of the age of ended jobs."""
_BATCH = 200
"""Jobs that are forgotten in one event loop iteration; more would delay all other work."""
_PAUSE = 0.05
_SETTLED = 3600.0
"""Seconds after the start before jobs are removed for their age: time to notice and set a wrong clock."""


class History:
    """Forgets the jobs that the history has no space for."""

    def __init__(self, env: Env, ledger: Ledger, links: Links, forwarder: Forwarder) -> None:
        self._env = env
        self._ledger = ledger
        self._links = links
        self._forwarder = forwarder
        self._scheduled = False

    def start(self, now: float) -> None:
        """Check now, and every minute if the age of jobs is bounded."""
        self._env.steady.look(now)
        self._trim(now)
        if self._env.settings.history_age > 0:
            self._env.timers.at(now + _EVERY, self.start)

    def job_ended(self) -> None:
        """Check soon if the history is full: one more job has ended."""
        tally, settings = self._ledger.table.tally, self._env.settings
        full = tally.ended > settings.history or tally.ended_bytes > settings.bounds.history_bytes
        if full and not self._scheduled:
            self._scheduled = True
            self._env.timers.at(self._env.now + _PAUSE, self._trim)

    def _trim(self, now: float) -> None:
        self._scheduled = False
        settings, steady = self._env.settings, self._env.steady
        oldest = float("-inf")
        if settings.history_age > 0 and steady.ran(now) >= _SETTLED:
            oldest = steady.time(now) - settings.history_age
        overdue = self._ledger.table.overdue(settings.history, settings.bounds.history_bytes, oldest, _BATCH)
        for entry in overdue:
            link = self._links.get(entry.connection) if not entry.removed else None
            self._ledger.forget(entry)
            self._env.counts["jobs_forgotten"] += 1
            if link is not None:
                self._forwarder.call(link, "job.remove", {"uid": entry.uid}, self._discarded, now)
        if len(overdue) == _BATCH:
            self._scheduled = True
            self._env.timers.at(now + _PAUSE, self._trim)

    def _discarded(self, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        if error is not None:
            log.info("event=discard_failed error=%r", error.detail)
