"""Creating jobs, once per key: pick or dial an agent, write down what was decided, then tell the agent.

What is written before the agent hears of it makes a repeat, after a restart of the broker too, give the same job.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any

from prouter.broker.base.env import Done, Env
from prouter.broker.base.timers import Timer
from prouter.broker.jobs.ledger import Ledger
from prouter.broker.jobs.placement import choose, matching
from prouter.broker.jobs.records import read_record
from prouter.broker.links.dials import Dials
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.links import Link, Links
from prouter.errors import (
    AgentUnavailable,
    InvalidRequest,
    KeyReused,
    NotFound,
    Overloaded,
    ProtocolError,
    PRouterError,
)
from prouter.jobs import JobRecord

__all__ = ["Creations"]

log = logging.getLogger("prouter.broker")

_KEYS = 100_000
"""Keys remembered; older ones are forgotten."""


class _Creation:
    """One job being created."""

    def __init__(self, name: str, selector: dict[str, Any], key: str, digest: str, done: Done) -> None:
        self.name = name
        self.selector = selector
        self.key = key
        self.digest = digest
        self.waiting = [done]
        self.uid = ""
        self.link: Link | None = None
        self.timer: Timer | None = None


class Creations:
    """See the module's docstring."""

    def __init__(self, env: Env, links: Links, dials: Dials, forwarder: Forwarder, ledger: Ledger) -> None:
        self._env = env
        self._links = links
        self._dials = dials
        self._forwarder = forwarder
        self._ledger = ledger
        self._by_key: dict[str, _Creation] = {}
        self._placing: dict[_Creation, None] = {}
        self._reserved: Counter[str] = Counter()
        self._keys: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._digests: dict[str, str] = {}
        """Of keys, what tells their requests from others; earlier versions wrote none down."""
        self._unwanted: OrderedDict[str, None] = OrderedDict()

    @property
    def pending(self) -> int:
        """Jobs being created."""
        return len(self._by_key)

    def restore(self, key: str, connection: str, uid: str, digest: str = "") -> None:
        """A key a broker before had written down."""
        self._keys[key] = (connection, uid)
        if digest:
            self._digests[key] = digest

    def restore_unwanted(self, uid: str) -> None:
        """A job whose creation a broker before had given up."""
        self._unwanted[uid] = None

    def write_all(self) -> Iterator[None]:
        """Write down every key and unwanted job again, one for each step; order is kept, before those that come."""
        store = self._env.store
        for place, (key, (connection, job)) in enumerate(list(self._keys.items())):
            if key in self._keys:
                store.submit(
                    "INSERT OR REPLACE INTO keys (key, connection, job, at) VALUES (?, ?, ?, ?)",
                    key,
                    connection,
                    job,
                    float(place),
                )
                self._write_digest(key)
                yield
        for place, job in enumerate(list(self._unwanted)):
            store.submit("INSERT OR REPLACE INTO unwanted (job, at) VALUES (?, ?)", job, float(place))
            yield

    def reserved(self, connection: str) -> int:
        """Jobs being created on a connection."""
        return self._reserved[connection]

    def unwanted(self, uid: str) -> bool:
        """Whether a job's creation was given up before its agent answered: nobody knows of it."""
        return uid in self._unwanted

    def withdraw(self, key: str, uid: str) -> None:
        """The job with this key is removed since its start was refused: a repeat makes another."""
        if self._keys.get(key, ("", ""))[1] == uid:
            del self._keys[key]
            self._env.store.submit("DELETE FROM keys WHERE key = ?", key)
            self._forget_digest(key)

    def create(self, args: dict[str, Any], done: Done, now: float) -> None:
        """Carry out ``jobs.create``; `done` gets ``{"job": info}``.

        Raises:
            PRouterError: it is refused at once.
        """
        name, selector, key, digest = (args.get(field) for field in ("name", "agent", "key", "digest"))
        digest = digest if isinstance(digest, str) else ""
        if not isinstance(name, str) or not isinstance(selector, dict) or not isinstance(key, str) or not key:
            raise InvalidRequest("Invalid request: name, agent and key are needed")
        running = self._by_key.get(key)
        if running is not None:
            _check_digest(running.digest, digest)
            running.waiting.append(done)
            return
        if len(self._by_key) >= self._env.settings.bounds.link_calls:
            raise Overloaded("too many jobs are being created", retry_after=1)
        creation = _Creation(name, selector, key, digest, done)
        known = self._keys.get(key)
        if known is not None:
            _check_digest(self._digests.get(key, ""), digest)
            self._repeat(creation, *known, now)
            return
        if selector.get("type") == "address":
            address, token = str(selector.get("address", "")), str(selector.get("token", ""))
            self._by_key[key] = creation
            self._dials.obtain(address, token, partial(self._dialled, creation), now)
            return
        self._place(creation, now)

    def link_up(self, now: float) -> None:
        """An agent is (back) there: creations that wait for one may go on."""
        for creation in list(self._placing):
            try:
                self._place(creation, now)
            except PRouterError as error:
                self._finish(creation, {}, error, now)

    def _repeat(self, creation: _Creation, connection: str, uid: str, now: float) -> None:
        """The key is known: the same answer, whatever has become of the job; that may have been heard of just now."""
        entry = self._ledger.table.get(uid)
        if entry is not None:
            answer = JobRecord(uid, entry.connection, entry.name, created_at=entry.created_at)
            told = {"job": self._ledger.info(entry, answer)}
            self._ledger.when_written(partial(_answer, creation.waiting, told, None))
            return
        link = self._links.get(connection)
        creation.uid = uid
        if link is None:
            error = AgentUnavailable("the agent the job was created on is gone", job=uid, code="agent_lost")
            self._finish(creation, {}, error, now)
            return
        self._by_key[creation.key] = creation
        creation.link = link
        self._reserved[connection] += 1
        self._forward(creation, now)

    def _place(self, creation: _Creation, now: float) -> None:
        link = choose(matching(self._links, creation.selector), self._used)
        self._by_key[creation.key] = creation
        if link is not None:
            self._placed(creation, link, now)
        elif creation.timer is None:
            self._placing[creation] = None
            creation.timer = self._env.timers.at(now + self._env.settings.hold, partial(self._not_placed, creation))

    def _not_placed(self, creation: _Creation, now: float) -> None:
        creation.timer = None
        self._finish(creation, {}, AgentUnavailable("the agent is away", retry_after=2), now)

    def _dialled(self, creation: _Creation, link: Link | None, error: PRouterError | None, now: float) -> None:
        if link is None:
            self._finish(creation, {}, error or AgentUnavailable("the agent is away", retry_after=2), now)
            return
        try:
            choose([link], self._used)
        except PRouterError as problem:
            self._finish(creation, {}, problem, now)
        else:
            self._placed(creation, link, now)

    def _placed(self, creation: _Creation, link: Link, now: float) -> None:
        self._placing.pop(creation, None)
        if creation.timer is not None:
            creation.timer.cancel()
            creation.timer = None
        creation.uid, creation.link = self._env.new_uid(), link
        link.placed += 1
        self._reserved[link.connection] += 1
        self._keys[creation.key] = (link.connection, creation.uid)
        if len(self._keys) > _KEYS:
            oldest, _ = self._keys.popitem(last=False)
            self._env.store.submit("DELETE FROM keys WHERE key = ?", oldest)
            self._forget_digest(oldest)
        if creation.digest:
            self._digests[creation.key] = creation.digest
            self._write_digest(creation.key)
        self._env.store.submit(
            "INSERT OR REPLACE INTO keys (key, connection, job, at) VALUES (?, ?, ?, ?)",
            creation.key,
            link.connection,
            creation.uid,
            self._env.wall(),
            done=partial(self._written, creation),
        )

    def _written(self, creation: _Creation, now: float) -> None:
        if self._by_key.get(creation.key) is creation:
            self._forward(creation, now)

    def _forward(self, creation: _Creation, now: float) -> None:
        link = creation.link
        if link is None or self._links.get(link.connection) is not link:
            self._finish(creation, {}, AgentUnavailable("the agent is gone", code="agent_lost"), now)
            return
        args = {
            "uid": creation.uid,
            "connection": link.connection,
            "name": creation.name,
            "router": self._env.settings.auth,
        }
        self._forwarder.call(link, "job.create", args, partial(self._created, creation), now)

    def _created(self, creation: _Creation, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        link = creation.link
        if error is not None or link is None:
            self._finish(creation, {}, error, now)
            return
        try:
            record = read_record(value.get("record"), link.connection)
            if record.uid != creation.uid:
                raise ProtocolError("it is of another job")
            self._ledger.apply(record, link.info.uid)
        except ProtocolError as problem:
            self._env.malformed(link.path, problem)
            text = f"agent '{link.info.uid}' answered with a malformed record: {problem.detail}"
            self._finish(creation, {}, ProtocolError(text), now)
            return
        self._ledger.when_written(partial(self._created_written, creation))

    def _created_written(self, creation: _Creation, now: float) -> None:
        """The job itself is written down now: whoever hears of it finds it, after a crash too."""
        entry = self._ledger.table.get(creation.uid)
        if entry is not None:
            self._finish(creation, {"job": self._ledger.info(entry)}, None, now)
        else:
            self._finish(creation, {}, NotFound(f"job '{creation.uid}' is not found", job=creation.uid), now)

    def _finish(self, creation: _Creation, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        self._placing.pop(creation, None)
        if self._by_key.get(creation.key) is creation:
            del self._by_key[creation.key]
        if creation.timer is not None:
            creation.timer.cancel()
        if creation.link is not None:
            connection = creation.link.connection
            self._reserved[connection] -= 1
            if not self._reserved[connection]:
                del self._reserved[connection]
        if error is not None and creation.uid:
            log.warning("event=create_failed job=%s key=%s error=%r", creation.uid, creation.key, error.detail)
            self._give_up(creation)
            self._ledger.when_written(partial(_answer, creation.waiting, value, error))
        else:
            _answer(creation.waiting, value, error, now)

    def _give_up(self, creation: _Creation) -> None:
        """The job is not wanted: a repeat makes another, and this one is removed should its agent speak of it.

        Also with the next broker, for whoever was told that it failed may have it created elsewhere by then.
        """
        store = self._env.store
        self._keys.pop(creation.key, None)
        store.submit("DELETE FROM keys WHERE key = ?", creation.key)
        self._forget_digest(creation.key)
        self._unwanted[creation.uid] = None
        store.submit("INSERT OR REPLACE INTO unwanted (job, at) VALUES (?, ?)", creation.uid, self._env.wall())
        if len(self._unwanted) > _KEYS:
            oldest, _ = self._unwanted.popitem(last=False)
            store.submit("DELETE FROM unwanted WHERE job = ?", oldest)

    def _write_digest(self, key: str) -> None:
        digest = self._digests.get(key)
        if digest is not None:
            self._env.store.submit("INSERT OR REPLACE INTO digests (key, digest) VALUES (?, ?)", key, digest)

    def _forget_digest(self, key: str) -> None:
        if self._digests.pop(key, None) is not None:
            self._env.store.submit("DELETE FROM digests WHERE key = ?", key)

    def _used(self, link: Link) -> int:
        own = len(self._ledger.table.live(link.connection)) + self._reserved[link.connection]
        return max(own, link.running)


def _check_digest(known: str, digest: str) -> None:
    """Refuse a key that was used for another request, as far as both are known."""
    if known and digest and known != digest:
        raise KeyReused("this Idempotency-Key was used before, for a request with another body; use a new key")


def _answer(waiting: list[Done], value: dict[str, Any], error: PRouterError | None, now: float) -> None:
    for done in waiting:
        done(value, error, now)
