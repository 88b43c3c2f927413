"""Index of the jobs in memory by state, agent, name and owner, newest first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from heapq import merge
from typing import Any, NamedTuple

from prouter.broker.jobs.stored_history import Key
from prouter.jobs import State

__all__ = ["JobIndex", "Listed"]

_CLOSED = State.CLOSED.value
_OPEN = "open"
_Group = tuple[str, ...]


class Listed(NamedTuple):
    """One job in the index, with the fields by which lists are filtered.

    Its first two fields are its `Key`: so it is compared as that, and a list of jobs needs no keys beside them.
    """

    created: int
    uid: str
    state: str
    agent: str
    name: str
    owner: str | None = None

    @property
    def key(self) -> Key:
        """The job's place in the order."""
        return self.created, self.uid


class JobIndex:
    """Jobs in order for every filter that lists have.

    Removed jobs (state CLOSED) are listed only if a request asks for that state.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Listed] = {}
        self._order: dict[_Group, list[Listed]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def load(self, jobs: Collection[Listed]) -> None:
        """Add many jobs at once, faster than one by one."""
        alike: dict[tuple[str | None, ...], list[list[Listed]]] = {}
        for job in jobs:
            self._jobs[job.uid] = job
            lists = alike.get(job[2:])
            if lists is None:
                lists = alike[job[2:]] = [self._order.setdefault(group, []) for group in _groups(job)]
            for listed in lists:
                listed.append(job)
        for listed in self._order.values():
            listed.sort()

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
        for group in after:
            listed = self._order.setdefault(group, [])
            if group in before:
                listed[_place(listed, job.key)] = job
            else:
                insort(listed, job)

    def remove(self, uid: str) -> None:
        """Remove a job. Idempotent."""
        job = self._jobs.pop(uid, None)
        if job is not None:
            for group in _groups(job):
                self._take(group, job.key)

    def newest(
        self,
        states: Collection[str],
        owner: str | None,
        agent: str | None,
        name: str | None,
        before: Key | None,
    ) -> Iterator[Listed]:
        """Jobs that fit, the newest first; only those older than `before`.

        Args:
            states: any of them; any but CLOSED if there are none.
        """
        wanted = frozenset(states)
        for job in _newest_first(self._candidates(wanted, agent, name, owner), before):
            if not (
                (wanted and job.state not in wanted)
                or (agent is not None and job.agent != agent)
                or (name is not None and job.name != name)
                or (owner is not None and job.owner != owner)
            ):
                yield job

    def _candidates(
        self, states: Collection[str], agent: str | None, name: str | None, owner: str | None
    ) -> list[list[Listed]]:
        """The shortest lists that together hold every matching job once."""
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
        listed = self._order[group]
        if len(listed) == 1:
            del self._order[group]
        else:
            del listed[_place(listed, key)]


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


def _place(listed: list[Listed], key: Key) -> int:
    """Where the job with this key is in a list, or would be."""
    keys: Sequence[Any] = listed  # A key comes directly before the job that begins with it.
    return bisect_left(keys, key)


def _newest_first(lists: list[list[Listed]], before: Key | None) -> Iterator[Listed]:
    """The jobs of all lists that are older than `before`, the newest first."""
    return merge(*(_backwards(listed, before) for listed in lists), reverse=True)


def _backwards(listed: list[Listed], before: Key | None) -> Iterator[Listed]:
    end = len(listed) if before is None else _place(listed, before)
    return (listed[position] for position in range(end - 1, -1, -1))
