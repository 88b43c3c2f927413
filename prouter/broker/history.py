"""Keeping the history within its bounds: the longest ended jobs are forgotten, and removed from their agents."""

from __future__ import annotations

import logging
from typing import Any

from prouter.broker.env import Env
from prouter.broker.forward import Forwarder
from prouter.broker.ledger import Ledger
from prouter.broker.links import Links
from prouter.errors import PRouterError

__all__ = ["History"]

log = logging.getLogger("prouter.broker")

_EVERY = 60.0
"""Seconds between looks at the age of ended jobs."""
_BATCH = 200
"""Jobs forgotten at once: more would hold up everybody else."""
_PAUSE = 0.05


class History:
    """See the module's docstring."""

    def __init__(self, env: Env, ledger: Ledger, links: Links, forwarder: Forwarder) -> None:
        self._env = env
        self._ledger = ledger
        self._links = links
        self._forwarder = forwarder
        self._scheduled = False

    def start(self, now: float) -> None:
        """Look now, and from time to time when ended jobs grow too old."""
        self._trim(now)
        if self._env.settings.history_age > 0:
            self._env.timers.at(now + _EVERY, self.start)

    def job_ended(self) -> None:
        """One more: soon there may be too many."""
        if not self._scheduled and self._ledger.table.ended_count > self._env.settings.history:
            self._scheduled = True
            self._env.timers.at(self._env.now + _PAUSE, self._trim)

    def _trim(self, now: float) -> None:
        self._scheduled = False
        settings = self._env.settings
        oldest = self._env.wall() - settings.history_age if settings.history_age > 0 else float("-inf")
        overdue = self._ledger.table.overdue(settings.history, oldest)
        for entry in overdue[:_BATCH]:
            link = self._links.get(entry.connection) if not entry.removed else None
            self._ledger.forget(entry)
            self._env.counts["jobs_forgotten"] += 1
            if link is not None:
                self._forwarder.call(link, "job.remove", {"uid": entry.uid}, self._discarded, now)
        if len(overdue) > _BATCH:
            self._scheduled = True
            self._env.timers.at(now + _PAUSE, self._trim)

    def _discarded(self, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        if error is not None:
            log.info("event=discard_failed error=%r", error.detail)
