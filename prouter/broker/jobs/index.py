"""Index of jobs by state, agent, name and owner, newest first: a page costs the same however long the list is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from heapq import merge
from typing import NamedTuple

from prouter.errors import InvalidRequest
from prouter.jobs import State

__all__ = ["JobIndex", "Listed"]

_CLOSED = State.CLOSED.value
_OPEN = "open"
Key = tuple[int, str]
"""Creation time in microseconds and uid of a job: unique, and in the order of creation."""


class Listed(NamedTuple):
    """One job in the index, with the fields by which lists are filtered."""

    uid: str
    created: int
    state: str
    agent: str
    name: str
    owner: str | None = None

    @property
    def key(self) -> Key:
        """The job's place in the order."""
        return self.created, self.uid


class JobIndex:
    """Sorted keys for every filter that lists have.

    Removed jobs (state CLOSED) are listed only if a request asks for that state.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Listed] = {}
        self._order: dict[tuple[str, ...], list[Key]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def load(self, jobs: Collection[Listed]) -> None:
        """Add many jobs at once, faster than one by one."""
        for job in jobs:
            self._jobs[job.uid] = job
            key = job.key
            for group in _groups(job):
                self._order.setdefault(group, []).append(key)
        for keys in self._order.values():
            keys.sort()

    def put(self, job: Listed) -> None:
        """Add a job, or bring it up to date."""
        known = self._jobs.get(job.uid)
        if known == job:
            return
        before = frozenset(_groups(known)) if known is not None and known.created == job.created else frozenset()
        after = _groups(job)
        if known is not None:
            for group in (before - frozenset(after)) if before else _groups(known):
                self._take(group, known.key)
        self._jobs[job.uid] = job
        key = job.key
        for group in after:
            if group not in before:
                insort(self._order.setdefault(group, []), key)

    def remove(self, uid: str) -> None:
        """Remove a job. Idempotent."""
        job = self._jobs.pop(uid, None)
        if job is not None:
            for group in _groups(job):
                self._take(group, job.key)

    def count_states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {state.value: len(self._order.get(("state", state.value), ())) for state in State}

    def page(
        self,
        *,
        states: Collection[str] = (),
        agent: str | None = None,
        name: str | None = None,
        owner: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[list[str], str | None]:
        """Uids of a page of jobs, the newest first, and the cursor of the next page, None at the end.

        Raises:
            InvalidRequest: the cursor is not one that `page` or `cursor` gave.
        """
        wanted = frozenset(states)
        before = None if cursor is None else _read_cursor(cursor)
        found: list[str] = []
        last: Key | None = None
        for key in _newest_first(self._candidates(wanted, agent, name, owner), before):
            job = self._jobs[key[1]]
            if (
                (wanted and job.state not in wanted)
                or (agent is not None and job.agent != agent)
                or (name is not None and job.name != name)
                or (owner is not None and job.owner != owner)
            ):
                continue
            if len(found) == limit:
                return found, _cursor(last) if last is not None else None
            found.append(job.uid)
            last = key
        return found, None

    def cursor(self, uid: str) -> str:
        """The cursor of a page that begins after this job."""
        return _cursor(self._jobs[uid].key)

    def _candidates(
        self, states: Collection[str], agent: str | None, name: str | None, owner: str | None
    ) -> list[list[Key]]:
        """The shortest lists of keys that together hold every matching job once."""
        parts = {_part(state) for state in states} or {_OPEN}
        ways: list[list[tuple[str, ...]]] = [[(part,) for part in parts]]
        if states:
            ways.append([("state", state) for state in states])
        if agent is not None and name is not None:
            ways.append([("agent and name", part, agent, name) for part in parts])
        elif agent is not None:
            ways.append([("agent", part, agent) for part in parts])
        elif name is not None:
            ways.append([("name", part, name) for part in parts])
        if owner is not None:
            ways.append([("owner", part, owner) for part in parts])
        return min(([self._order.get(group, []) for group in way] for way in ways), key=lambda way: sum(map(len, way)))

    def _take(self, group: tuple[str, ...], key: Key) -> None:
        keys = self._order[group]
        if len(keys) == 1:
            del self._order[group]
        else:
            del keys[bisect_left(keys, key)]


def _part(state: str) -> str:
    return _CLOSED if state == _CLOSED else _OPEN


def _groups(job: Listed) -> tuple[tuple[str, ...], ...]:
    part = _part(job.state)
    groups: tuple[tuple[str, ...], ...] = (
        (part,),
        ("state", job.state),
        ("agent", part, job.agent),
        ("name", part, job.name),
        ("agent and name", part, job.agent, job.name),
    )
    return groups if job.owner is None else (*groups, ("owner", part, job.owner))


def _newest_first(lists: list[list[Key]], before: Key | None) -> Iterator[Key]:
    """The keys of all lists that are older than `before`, the newest first."""
    return merge(*(_backwards(keys, before) for keys in lists), reverse=True)


def _backwards(keys: list[Key], before: Key | None) -> Iterator[Key]:
    end = len(keys) if before is None else bisect_left(keys, before)
    return (keys[position] for position in range(end - 1, -1, -1))


def _cursor(last: Key) -> str:
    return f"{last[0]}-{last[1]}"


def _read_cursor(cursor: str) -> Key:
    created, dash, uid = cursor.partition("-")
    if not dash or not created.isascii() or not created.isdigit() or len(created) > 20:
        raise InvalidRequest("Invalid request: the cursor is not one that this router gave")
    return int(created), uid
