"""Reports of what running jobs use, so that a router shows it without a call to the agent.

The cost is bounded whatever the number of jobs: each round measures a few of them, new ones first, then those measured
longest ago, and tells only what has changed. It measures one after another, so that the keeper has time for other
requests in between, but waits for none whose machine cannot be reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent

from prouter.errors import PRouterError
from prouter.jobs import JobRecord

if TYPE_CHECKING:
    from prouter.agent.jobs.manager import JobManager

__all__ = ["Usage", "UsageReports"]

log = logging.getLogger("prouter.agent")

_INTERVAL = 1.0
"""Seconds between two rounds."""
_ROUND = 32
"""Jobs that are measured in a round."""
_TURN = 0.05
"""Seconds for which a job is measured alone."""

Usage = tuple[str, float | None, int | None]
"""Uid, CPU seconds and resident bytes of a job."""


class UsageReports:
    """Measures the jobs of one agent in rounds.

    Args:
        manager: knows the jobs.
        tell: called with a connection's uid and news of jobs that belong to it.
    """

    def __init__(self, manager: JobManager, tell: Callable[[str, list[Usage]], None]) -> None:
        self._manager = manager
        self._tell = tell
        self._told: dict[str, Usage | None] = {}
        """What was last told of each running job, None if nothing was; the job measured longest ago comes first."""

    def run(self) -> None:
        """Measure in rounds, for ever; for a greenlet of its own."""
        while True:
            gevent.sleep(_INTERVAL)
            try:
                self.round()
            except Exception:
                log.exception("event=usage_round_failed")

    def forget(self) -> None:
        """Tell everything again, because a router is linked that knows nothing of it."""
        self._told.clear()

    def round(self) -> None:
        """Measure a few jobs, and tell what has changed."""
        running = {record.uid: record for record in self._manager.records() if record.pid is not None}
        for uid in [uid for uid in self._told if uid not in running]:
            del self._told[uid]
        new = [uid for uid in running if uid not in self._told]
        chosen = [*new, *self._told][:_ROUND]
        for uid in chosen:  # Also those that cannot be measured: they must not be first again.
            self._told[uid] = self._told.pop(uid, None)
        measured = {}
        for uid in chosen:
            measured[uid] = gevent.spawn(self._measure, uid)
            measured[uid].join(_TURN)
        news: dict[str, list[Usage]] = {}
        for uid, measuring in measured.items():
            usage = measuring.get()
            if usage is not None and self._told.get(uid) != usage:
                news.setdefault(running[uid].connection, []).append(usage)
                self._told[uid] = usage
        for connection, usages in news.items():
            self._tell(connection, usages)

    def _measure(self, uid: str) -> Usage | None:
        try:
            return _usage(self._manager.usage(uid))
        except PRouterError as error:  # The job is being removed, or its machine is away.
            log.debug("event=usage_not_known job=%s error=%r", uid, error.detail)
            return None


def _usage(record: JobRecord) -> Usage:
    return record.uid, record.cpu_seconds, record.rss_bytes
