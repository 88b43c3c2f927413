"""Reports of how large sandboxes are, for routers that ask for them because they limit the bytes of an owner.

To measure a sandbox is to walk over all of it. So the agent walks for a twentieth of the time at most, and measures the
sandbox next that was measured longest ago. It tells what it has found even if nothing changed, because the router
counts uploads in between by what their clients announce.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import gevent

from prouter.errors import PRouterError

if TYPE_CHECKING:
    from prouter.agent.jobs.manager import JobManager

__all__ = ["SandboxReports", "Size"]

log = logging.getLogger("prouter.agent")

_INTERVAL = 1.0
"""Seconds between two rounds, at least."""
_AGAIN = 5.0
"""Seconds after which a sandbox is measured again, at least."""
_ROUND = 0.1
"""Seconds of walking after which a round ends."""
_MOST = 200
"""Sandboxes that are measured in a round."""
_PACE = 20
"""A round is followed by a pause of this many times the seconds that it took."""

Size = tuple[str, int]
"""Uid of a job, and the bytes on disk of its sandbox."""


class SandboxReports:
    """Measures the sandboxes of one agent in rounds.

    Args:
        manager: knows the jobs.
        wanted: returns the uids of the connections whose routers want to know.
        tell: called with a connection's uid and the sizes of sandboxes of its jobs.
    """

    def __init__(
        self, manager: JobManager, wanted: Callable[[], Collection[str]], tell: Callable[[str, list[Size]], None]
    ) -> None:
        self._manager = manager
        self._wanted = wanted
        self._tell = tell
        self._measured: dict[str, float] = {}
        """By job, when its sandbox was measured; the one measured longest ago comes first."""

    def run(self) -> None:
        """Measure in rounds, for ever; for a greenlet of its own."""
        pause = _INTERVAL
        while True:
            gevent.sleep(pause)
            began = time.monotonic()
            try:
                self.round()
            except Exception:
                log.exception("event=sandbox_round_failed")
            pause = max(_INTERVAL, _PACE * (time.monotonic() - began))

    def forget(self) -> None:
        """Measure everything again, because a router is linked that knows nothing of it."""
        self._measured.clear()

    def round(self) -> None:
        """Measure some sandboxes, and tell their sizes."""
        wanted = self._wanted()
        if not wanted:
            return
        connections = {
            record.uid: record.connection for record in self._manager.records() if record.connection in wanted
        }
        for uid in [uid for uid in self._measured if uid not in connections]:
            del self._measured[uid]
        began = time.monotonic()
        new = [uid for uid in connections if uid not in self._measured]
        old = [uid for uid, at in self._measured.items() if at + _AGAIN <= began]
        sizes: dict[str, list[Size]] = {}
        for uid in [*new, *old][:_MOST]:
            size = self._measure(uid)
            self._measured.pop(uid, None)
            self._measured[uid] = now = time.monotonic()
            if size is not None:
                sizes.setdefault(connections[uid], []).append((uid, size))
            if now - began > _ROUND:
                break
        for connection, told in sizes.items():
            self._tell(connection, told)

    def _measure(self, uid: str) -> int | None:
        try:
            sandbox = self._manager.sandbox(uid)
            size: int = gevent.get_hub().threadpool.apply(sandbox.size_bytes)
        except PRouterError as error:
            log.debug("event=sandbox_not_measured job=%s error=%r", uid, error.detail)  # The job is being removed.
            return None
        return size
