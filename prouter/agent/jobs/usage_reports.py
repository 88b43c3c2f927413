"""What running jobs use, told to their routers from time to time, so that job info needs no question to the agent.

The cost is bounded whatever the number of jobs: each round looks at a few of them, those first that were looked at
longest ago (new ones before all others), and only what changed is told.
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
"""Seconds between rounds."""
_ROUND = 32
"""Jobs looked at in a round."""

Usage = tuple[str, float | None, int | None]
"""A job's uid, its CPU seconds, its resident bytes."""


class UsageReports:
    """See the module's docstring.

    Args:
        manager: knows the jobs.
        tell: called with a connection's uid and news of jobs that belong to it.
    """

    def __init__(self, manager: JobManager, tell: Callable[[str, list[Usage]], None]) -> None:
        self._manager = manager
        self._tell = tell
        self._told: dict[str, Usage] = {}
        """The last news of each running job; who was looked at longest ago comes first."""

    def run(self) -> None:
        """Rounds for ever; a greenlet's life."""
        while True:
            gevent.sleep(_INTERVAL)
            try:
                self.round()
            except Exception:
                log.exception("event=usage_round_failed")

    def forget(self) -> None:
        """Tell everything again: there is a router that knows nothing of it."""
        self._told.clear()

    def round(self) -> None:
        """Look at a few jobs and tell what is new."""
        running = {record.uid: record for record in self._manager.records() if record.pid is not None}
        for uid in [uid for uid in self._told if uid not in running]:
            del self._told[uid]
        new = [uid for uid in running if uid not in self._told]
        news: dict[str, list[Usage]] = {}
        for uid in [*new, *self._told][:_ROUND]:
            try:
                usage = _usage(self._manager.usage(uid))
            except PRouterError as error:
                log.debug("event=usage_not_known job=%s error=%r", uid, error.detail)  # It is being removed.
                continue
            if self._told.pop(uid, None) != usage:
                news.setdefault(running[uid].connection, []).append(usage)
            self._told[uid] = usage
        for connection, usages in news.items():
            self._tell(connection, usages)


def _usage(record: JobRecord) -> Usage:
    return record.uid, record.cpu_seconds, record.rss_bytes
