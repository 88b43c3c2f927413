"""Removal of jobs, once for each call, and stored before the caller is answered."""

from __future__ import annotations

from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.creations.keys import Keys
from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.replies import read_reply
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.links import Links
from prouter.errors import NotFound, ProtocolError, PRouterError
from prouter.fabric.calls import Request
from prouter.jobs import JobRecord

__all__ = ["Removals"]

_REMOVED_ALL_THE_SAME = frozenset({"agent_lost", "answer_too_large"})
"""Codes of errors that mean that the agent has not got the job any more."""


class Removals:
    """Removes jobs from their agents, then from the table.

    The broker stores which call asked for the removal before the agent hears of it. So a call that is repeated, after a
    restart of the broker too, gets the same reply, and a second removal gets `NotFound`.
    """

    def __init__(self, env: Env, links: Links, forwarder: Forwarder, ledger: Ledger, keys: Keys) -> None:
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._ledger = ledger
        self._keys = keys

    def remove(self, request: Request, done: Done, now: float) -> None:
        """Carry out ``jobs.remove``; `done` gets ``{"job": info}``, as the job was before.

        Raises:
            NotFound: there is no such job, or another call has removed it.
        """
        args = request.args
        entry = self._ledger.find(str(args.get("connection") or ""), str(args.get("job")))
        if entry.removed:
            if entry.removal != request.call_id:
                raise NotFound(f"job '{entry.uid}' is not found: it was removed", job=entry.uid, state="CLOSED")
            self._removed_for_good(entry, entry.last_record, done)
            return
        self._keys.withdraw(str(args.get("key") or ""), entry.uid)
        removed = partial(self._removed, entry, request.call_id, done)

        def written(now: float) -> None:
            link = self._links.get(entry.connection)
            if link is None or entry.removed:
                removed({}, None, now)
            else:
                withdrawn = {"withdraw": True} if args.get("key") else {}  # Other routers have to forget the key, too.
                self._forwarder.call(link, "job.remove", {"uid": entry.uid, **withdrawn}, removed, now)

        self._ledger.removing(entry, request.call_id, written)

    def _removed(
        self,
        entry: Entry,
        call_id: str,
        done: Done,
        value: dict[str, Any],
        error: PRouterError | None,
        now: float,
    ) -> None:
        if error is not None and not isinstance(error, NotFound) and error.code not in _REMOVED_ALL_THE_SAME:
            done({}, error, now)
            return
        before = entry.last_record
        if "record" in value:
            try:
                before = read_reply(value, entry.connection, entry.uid)
            except ProtocolError as problem:
                self._malformed(entry, problem)  # The agent has removed the job all the same.
        if not entry.removed:
            self._ledger.close(entry, before, call_id)
        self._removed_for_good(entry, before, done)

    def _malformed(self, entry: Entry, problem: ProtocolError) -> None:
        """Count a reply with a malformed record."""
        link = self._links.get(entry.connection)
        self._env.malformed(link.path if link is not None else None, problem)

    def _removed_for_good(self, entry: Entry, before: JobRecord, done: Done) -> None:
        """Reply once the removal is stored: a broker that starts after a crash must not show the job again."""
        answer = {"job": self._ledger.info(entry, before)}
        self._ledger.when_written(partial(done, answer, None))
