"""Storing everything again, after the database was lost under a running broker.

The broker's memory holds all but the history. That is read from the earlier database, which stays open until the new
one has all of it, also if it was deleted; of a damaged one, what can be read is kept. The broker submits everything in
parts, so that other work is not delayed. Changes meanwhile are submitted as usual, after the part that they change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice

from prouter.broker.base.env import Env
from prouter.broker.creations.creation import Creations
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.links.dials import Dials
from prouter.broker.links.links import Links

__all__ = ["Rewriting"]

log = logging.getLogger("prouter.broker")

_PART = 200
"""Rows that are submitted in one event loop iteration."""


class Rewriting:
    """Submits the whole state of the broker to the store."""

    def __init__(self, env: Env, ledger: Ledger, links: Links, dials: Dials, creations: Creations) -> None:
        self._env = env
        self._ledger = ledger
        self._links = links
        self._dials = dials
        self._creations = creations
        self._rows: Iterator[None] | None = None
        self._begun = 0
        self._rewritten = 0

    def opened(self, now: float) -> None:
        """Note that the store has opened a database that misses nothing: the history is read from that one."""
        if self._begun == self._rewritten:
            self._release()

    def begin(self, now: float) -> None:
        """Submit everything; begin anew if that is under way."""
        log.warning("event=rewriting jobs=%d", len(self._ledger.table))
        idle = self._rows is None
        self._begun += 1
        self._ledger.table.hold()
        self._rows = self._everything()
        if idle:
            self._part(now)

    def _part(self, now: float) -> None:
        if self._rows is None:
            return
        if sum(1 for _ in islice(self._rows, _PART)) == _PART:
            self._env.timers.at(now, self._part)
        else:
            self._rows = None
            self._env.store.submit("SELECT 1", committed=partial(self._complete, self._begun))

    def _complete(self, begun: int, now: float) -> None:
        """Go on with the new database, unless that was lost as well."""
        if begun == self._begun:
            self._rewritten = begun
            self._release()
            log.info("event=rewritten jobs=%d", len(self._ledger.table))

    def _release(self) -> None:
        table = self._ledger.table
        if table.history.reopen():
            table.release()

    def _everything(self) -> Iterator[None]:
        """Submit one row in each step."""
        for connection in self._ledger.connections:
            link = self._links.get(connection)
            address = self._dials.address_of(link) if link is not None else None
            self._ledger.write_connection(connection, link.since if link is not None else 0.0, address)
            yield
        yield from self._creations.keys.write_all()
        yield from self._creations.queued.write_all()
        yield from self._ledger.write_all()
