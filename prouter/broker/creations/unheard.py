"""Agents that may have jobs of which the broker does not know, because it has been restarted.

Some creations wait for a while until such agents have listed their jobs. If owners have a limit of jobs, all creations
wait, because jobs that were being created count. Otherwise those with a key that a client sent wait, because the key
may have given a job at another router meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

from prouter.broker.base.env import Env
from prouter.broker.creations.keys import Keys
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.links.links import Links

__all__ = ["Unheard"]

_RETURN = 10.0
"""Seconds in which agents link again after a restart of the router (`client.reconnect_delay_max`)."""


class Unheard:
    """Connections that creations wait for: their agents have not listed their jobs since the broker's start."""

    def __init__(self, env: Env, links: Links, ledger: Ledger, keys: Keys) -> None:
        self._env = env
        self._links = links
        self._ledger = ledger
        self._keys = keys
        self._creating: set[str] = set()
        """Connections on which the earlier broker was creating jobs; filled only if owners have a limit."""
        self._shared: set[str] = set()
        """Connections of agents that link to other routers as well."""
        self._until = 0.0
        self._shared_until = 0.0

    def restored(self, now: float) -> None:
        """Note that keys, jobs and links of an earlier broker are restored; agents have not listed their jobs yet."""
        settings, table = self._env.settings, self._ledger.table
        if settings.jobs_per_owner:
            latest = self._keys.latest(settings.bounds.link_calls)
            self._creating = {connection for connection, uid in latest if table.get(uid) is None}
        self._until = now + settings.hold
        self._shared = {link.connection for link in self._links if link.info.routers > 1}
        self._shared_until = now + min(settings.hold, _RETURN)

    def matters(self, *, keyed: bool, now: float) -> bool:
        """Return whether a creation has to wait.

        Args:
            keyed: whether the client sent a key.
        """
        if self._creating:
            self._creating = self._left(self._creating) if now < self._until else set()
        if self._shared:
            self._shared = self._left(self._shared) if now < self._shared_until else set()
        return bool(self._creating) or (keyed and bool(self._shared))

    def _left(self, connections: Iterable[str]) -> set[str]:
        links = [self._links.get(connection) for connection in connections]
        return {link.connection for link in links if link is not None and not link.confirmed}
