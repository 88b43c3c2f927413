"""Idempotency keys of creations, and uids of jobs whose creation failed; both survive a restart of the broker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from prouter.broker.base.env import Env
from prouter.errors import KeyReused

__all__ = ["Keys", "check_digest"]

_MOST = 100_000
"""Keys remembered, and uids of unwanted jobs; the oldest are forgotten first."""

_SAVE_KEY = "INSERT OR REPLACE INTO keys (key, connection, job, at) VALUES (?, ?, ?, ?)"
_SAVE_DIGEST = "INSERT OR REPLACE INTO digests (key, digest) VALUES (?, ?)"
_SAVE_UNWANTED = "INSERT OR REPLACE INTO unwanted (job, at) VALUES (?, ?)"


class Keys:
    """Which job each key gave, and which jobs nobody wants.

    An *unwanted* job is one whose creation failed before its agent replied. The client was told so and may have created
    the job elsewhere, so the agent has to remove this one should it have it.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._jobs: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """By key, connection and uid of the job; the oldest key first."""
        self._given: dict[str, str] = {}
        """By the uid of each of these jobs, its key."""
        self._digests: dict[str, str] = {}
        """By key, the digest of its request. Keys that earlier versions stored have none."""
        self._unwanted: OrderedDict[str, None] = OrderedDict()

    def restore(self, key: str, connection: str, uid: str, digest: str = "") -> None:
        """Take over a key that an earlier broker stored."""
        self._jobs[key] = (connection, uid)
        self._given[uid] = key
        if digest:
            self._digests[key] = digest

    def restore_unwanted(self, uid: str) -> None:
        """Take over an unwanted job that an earlier broker stored."""
        self._unwanted[uid] = None

    def job(self, key: str, digest: str) -> tuple[str, str] | None:
        """Connection and uid of the job that this key gave; None if it gave none.

        Raises:
            KeyReused: the key came with another request.
        """
        found = self._jobs.get(key)
        if found is not None:
            check_digest(self._digests.get(key, ""), digest)
        return found

    def gave(self, uid: str) -> bool:
        """Whether this router has created the job, as far as that is remembered."""
        return uid in self._given

    def latest(self, most: int) -> list[tuple[str, str]]:
        """Connections and uids of the jobs that the last `most` keys gave."""
        return list(islice(reversed(self._jobs.values()), most))

    def unwanted(self, uid: str) -> bool:
        """Whether the creation of this job failed."""
        return uid in self._unwanted

    def remember(self, key: str, connection: str, uid: str, digest: str, *, stored: Callable[[float], None]) -> None:
        """Note that the key gives this job; ``stored(now)`` is called once that is written."""
        self._jobs[key] = (connection, uid)
        self._given[uid] = key
        if len(self._jobs) > _MOST:
            self.forget(next(iter(self._jobs)))
        if digest:
            self._digests[key] = digest
            self._env.store.submit(_SAVE_DIGEST, key, digest)
        self._env.store.submit(_SAVE_KEY, key, connection, uid, self._env.wall(), done=stored)

    def replaced(self, uid: str, connection: str, other: str) -> None:
        """Note that an agent has given another job than the one that the key was to give. Idempotent.

        Args:
            uid: of the promised job.
            connection: of the agent.
            other: uid of the job that it has given.
        """
        key = self._given.get(uid)
        if key is not None and self._jobs[key] == (connection, uid):
            del self._given[uid]
            self._jobs[key] = (connection, other)
            self._given[other] = key
            self._env.store.submit(_SAVE_KEY, key, connection, other, self._env.wall())

    def forget(self, key: str) -> None:
        """Let the key give another job. Idempotent."""
        known = self._jobs.pop(key, None)
        if known is not None:
            self._given.pop(known[1], None)
            self._env.store.submit("DELETE FROM keys WHERE key = ?", key)
        if self._digests.pop(key, None) is not None:
            self._env.store.submit("DELETE FROM digests WHERE key = ?", key)

    def withdraw(self, key: str, uid: str) -> None:
        """Forget the key if it gave this job."""
        if self._jobs.get(key, ("", ""))[1] == uid:
            self.forget(key)

    def give_up(self, key: str, uid: str) -> None:
        """Note that the creation of this job failed: the key may give another one, and this job is unwanted."""
        store = self._env.store
        self.forget(key)
        self._unwanted[uid] = None
        store.submit(_SAVE_UNWANTED, uid, self._env.wall())
        if len(self._unwanted) > _MOST:
            oldest, _ = self._unwanted.popitem(last=False)
            store.submit("DELETE FROM unwanted WHERE job = ?", oldest)

    def want(self, uid: str) -> None:
        """Note that another router has created this job with the same key: it is not unwanted after all."""
        if self._unwanted.pop(uid, self) is None:
            self._env.store.submit("DELETE FROM unwanted WHERE job = ?", uid)

    def write_all(self) -> Iterator[None]:
        """Store everything again, one row for each step, in its order and before what comes later."""
        store = self._env.store
        for place, (key, (connection, uid)) in enumerate(list(self._jobs.items())):
            if key in self._jobs:
                store.submit(_SAVE_KEY, key, connection, uid, float(place))
                digest = self._digests.get(key)
                if digest is not None:
                    store.submit(_SAVE_DIGEST, key, digest)
                yield
        for place, uid in enumerate(list(self._unwanted)):
            store.submit(_SAVE_UNWANTED, uid, float(place))
            yield


def check_digest(known: str, digest: str) -> None:
    """Refuse a key that came with another request, as far as both digests are known.

    Raises:
        KeyReused: it did.
    """
    if known and digest and known != digest:
        raise KeyReused("this Idempotency-Key was used before, for a request with another body; use a new key")
