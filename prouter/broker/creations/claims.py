"""Claims of idempotency keys at agents, by which several routers create one job for a key.

Routers share nothing but agents. Before a broker creates a job for a client's key, it walks along a few agents, its
*witnesses*, and claims the key at each for the job that it is about to create. An agent keeps the first claim that it
gets for a key and returns it; the broker sends the returned claim to the next witness. All brokers ask in the same
order, that of a hash ring, so those that ask the same last witness agree. `docs/decisions/keys-of-several-routers.md`
says why.
"""

from __future__ import annotations

import hashlib
from bisect import bisect, insort
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from prouter.broker.base.env import Env
from prouter.broker.creations.keys import check_digest
from prouter.broker.links.forward import Forwarder
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.errors import AgentUnavailable, KeyReused, ProtocolError, PRouterError

__all__ = ["Claim", "Claimed", "Claims", "shared_key"]

_WITNESSES = 2
"""Agents that have to know of a claim. Two, because one may die, or be linked to some routers only."""
_ASKED = 4
"""Agents that are asked at most, if some do not answer."""
_LIMIT = 2.0
"""Seconds for which an agent may take to answer."""
_ASK_AGAIN = 0.2
"""Seconds after which the witnesses are asked again, if too few have answered."""
_LONGEST = 64
"""Characters of a uid."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The job that a key gives.

    Attributes:
        job, connection: uid of the job, and uid of its agent's connection.
        age: seconds since an agent first got the claim.
    """

    job: str
    connection: str
    age: float = 0.0


Claimed = Callable[[Claim | None, PRouterError | None, float], None]
"""Called with the claim that counts, or with an error, and the time."""


@dataclass(slots=True)
class _Walk:
    """One claim while its witnesses are asked, one after the other.

    Attributes:
        until: when it is given up if too few witnesses answer.
        left: witnesses that are still to be asked.
        answers: how many have answered.
        away: connections of witnesses that are away, or did not answer.
        first: connections of the first `_WITNESSES` on the ring. Unless one of them answers, the claim does not count.
    """

    key: str
    digest: str
    claim: Claim
    instead: str
    done: Claimed
    until: float
    left: list[Link] = field(default_factory=list)
    answers: int = 0
    away: set[str] = field(default_factory=set)
    first: set[str] = field(default_factory=set)

    @property
    def cut_off(self) -> bool:
        """Whether none of the first witnesses answers: other routers may reach them, and agree without this one."""
        return bool(self.first) and self.first <= self.away


class Claims:
    """Claims keys at the agents that link to several routers; with none of them every claim counts at once."""

    def __init__(self, env: Env, links: Links, forwarder: Forwarder) -> None:
        self._env = env
        self._links = links
        self._forwarder = forwarder
        self._ring: list[tuple[str, str]] = []
        """Place on the ring and connection of each agent that links to several routers, in order."""

    def link_up(self, link: Link) -> None:
        """Put an agent that links to several routers onto the ring."""
        place = (_place(link.connection), link.connection)
        at = bisect(self._ring, place)
        known = at > 0 and self._ring[at - 1] == place
        if link.info.routers > 1 and not known:
            insort(self._ring, place)

    def claim(self, key: str, digest: str, claim: Claim, instead: str, done: Claimed, now: float) -> None:
        """Claim a key for a job; `done` is called exactly once, with the claim that counts.

        It gets an error if the agents by which routers agree are silent for ``control.hold`` seconds: a router that is
        cut off from them would create a second job.

        Args:
            key: of the creation; agents get its hash.
            instead: uid of a job that nobody can get any more; a claim that names it is replaced. Empty for none.
        """
        until = now + self._env.settings.hold
        self._begin(_Walk(shared_key(key), digest, claim, instead, done, until), now)

    def _begin(self, walk: _Walk, now: float) -> None:
        witnesses = self._witnesses(walk.key)
        walk.left, walk.answers = [link for link in witnesses if link.up], 0
        walk.first = {link.connection for link in witnesses[:_WITNESSES]}
        walk.away = {link.connection for link in witnesses if not link.up}
        self._go_on(walk, now)

    def _witnesses(self, key: str) -> list[Link]:
        """Return the agents after the key's place on the ring, as many as are needed for `_ASKED` linked ones."""
        at = bisect(self._ring, (_place(key), ""))
        found: list[Link] = []
        gone: list[tuple[str, str]] = []
        up = 0
        for place in self._ring[at:] + self._ring[:at]:
            link = self._links.get(place[1])
            if link is None or link.info.routers < 2:
                gone.append(place)
                continue
            found.append(link)
            up += link.up
            if up == _ASKED:
                break
        for place in gone:
            self._ring.remove(place)
        return found

    def _go_on(self, walk: _Walk, now: float) -> None:
        if walk.left and walk.answers < _WITNESSES:
            self._ask(walk, walk.left.pop(0), now)
        elif not walk.cut_off:
            walk.done(walk.claim, None, now)
        elif now < walk.until:
            self._env.timers.at(now + _ASK_AGAIN, partial(self._begin, walk))
        else:
            text = "the agents by which routers agree on an Idempotency-Key do not answer this router; try again"
            walk.done(None, AgentUnavailable(text, retry_after=1), now)

    def _ask(self, walk: _Walk, link: Link, now: float) -> None:
        args: dict[str, Any] = {
            "key": walk.key,
            "digest": walk.digest,
            "job": walk.claim.job,
            "connection": walk.claim.connection,
            "instead": walk.instead,
        }
        self._forwarder.call(link, "key.claim", args, partial(self._answered, walk, link), now, limit=_LIMIT)

    def _answered(self, walk: _Walk, link: Link, value: dict[str, Any], error: PRouterError | None, now: float) -> None:
        """Go on to the next witness with the claim that this one returned. A witness that fails is left out."""
        if isinstance(error, AgentUnavailable):
            walk.away.add(link.connection)
        elif error is None:
            try:
                walk.claim = _read(value, walk)
                walk.answers += 1
            except KeyReused as problem:
                walk.done(None, problem, now)
                return
            except ProtocolError as problem:
                self._env.malformed(link.path, problem)
        self._go_on(walk, now)


def shared_key(key: str) -> str:
    """Return a creation's key as agents and other routers know it: a hash, which does not reveal the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _place(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(value: dict[str, Any], walk: _Walk) -> Claim:
    """Return the claim in a witness's answer.

    Raises:
        KeyReused: the key came with another request.
        ProtocolError: the answer is malformed.
    """
    job, connection, digest, age = (value.get(name) for name in ("job", "connection", "digest", "age"))
    texts = all(isinstance(text, str) and 0 < len(text) <= _LONGEST for text in (job, connection, digest))
    if not texts or not isinstance(age, (int, float)) or isinstance(age, bool) or not age >= 0:
        raise ProtocolError("malformed claim of a key")
    check_digest(str(digest), walk.digest)
    if job == walk.claim.job:
        return replace(walk.claim, age=max(walk.claim.age, float(age)))
    return Claim(str(job), str(connection), float(age))
