"""Order of waiting jobs: fair between owners, first in first out for the jobs of one owner.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with jobs of equal cost, which gives owners their turns
like round robin does. Each job gets a tag when it is queued: one more than its owner's last job has, waiting or placed,
but no less than the present round, which is the highest tag of a job that was placed. Lower tags go first. As tags
never change, a job's position is its place in one sorted list.

Jobs of one *shape* (`prouter.broker.queue.item`) fit the same agents. So only the first job of each shape is looked at,
and a shape that fits nowhere holds up no other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any

from prouter.broker.queue.item import Item, Shape

__all__ = ["FairOrder", "Key"]

Key = tuple[int, int]
"""Tag and number of a job."""


class FairOrder:
    """Waiting jobs in their order."""

    def __init__(self) -> None:
        self._round = 0
        self._keys: list[Key] = []
        self._by_key: dict[Key, Item] = {}
        self._shapes: dict[Shape, list[Key]] = {}
        self._heads: list[tuple[Key, str]] = []
        """Key of the first job of each shape, and the shape, in order."""
        self._owners: dict[str | None, list[Key]] = {}
        self._served: set[str | None] = set()
        """Owners with a job placed in the present round."""

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Item]:
        return (self._by_key[key] for key in self._keys)

    @property
    def first(self) -> Item | None:
        """The job whose turn it is."""
        return self._by_key[self._keys[0]] if self._keys else None

    def append(self, item: Item) -> None:
        """Add a job behind the others of its owner, and give it its tag."""
        own = self._owners.get(item.owner)
        item.tag = self._round + (item.owner in self._served)
        if own:
            item.tag = max(item.tag, own[-1][0] + 1)
        self.insert(item)

    def insert(self, item: Item) -> None:
        """Add a job that has a tag: it was in the queue before."""
        key = item.key
        insort(self._keys, key)
        self._by_key[key] = item
        insort(self._owners.setdefault(item.owner, []), key)
        keys = self._shapes.setdefault(item.shape, [])
        if keys and key > keys[0]:
            insort(keys, key)
            return
        if keys:
            self._drop_head(keys[0], item.shape)
        keys.insert(0, key)
        insort(self._heads, (key, item.shape.text))

    def remove(self, item: Item) -> None:
        """Remove a job."""
        key = item.key
        del self._by_key[key]
        _take(self._keys, key)
        _take(self._owners[item.owner], key)
        if not self._owners[item.owner]:
            del self._owners[item.owner]
        keys = self._shapes[item.shape]
        if keys[0] == key:
            self._drop_head(key, item.shape)
            del keys[0]
            if keys:
                insort(self._heads, (keys[0], item.shape.text))
            else:
                del self._shapes[item.shape]
        else:
            _take(keys, key)

    def serve(self, item: Item) -> None:
        """Remove a job that is assigned: its owner has had a turn."""
        self._note_served(item)
        self.remove(item)

    def begin(self, assigned: Iterable[Item]) -> None:
        """Estimate the present round after jobs of an earlier broker were inserted: it is not stored.

        The next turn of most owners is in the present round or the one after it, so the median is taken. The first job
        of a few owners may be from a much earlier round, because it has fitted nowhere for long.

        Args:
            assigned: jobs that have had their turn.
        """
        turns = sorted(keys[0][0] for keys in self._owners.values())
        self._round = turns[len(turns) // 2] if turns else 0
        for item in assigned:
            self._note_served(item)

    def _note_served(self, item: Item) -> None:
        if item.tag > self._round:
            self._round = item.tag
            self._served.clear()
        if item.tag == self._round:
            self._served.add(item.owner)

    def position(self, item: Item) -> int:
        """How many jobs go before this one if all fit, plus one."""
        return bisect_left(self._keys, item.key) + 1

    def heads(self, after: Key | None = None, most: int | None = None) -> list[Item]:
        """The first job of each shape, in their order.

        Args:
            after: only those behind this key.
            most: at most so many; None for all.
        """
        start = 0 if after is None else bisect_left(self._heads, ((after[0], after[1] + 1), ""))
        end = len(self._heads) if most is None else start + most
        return [self._by_key[key] for key, _ in self._heads[start:end]]

    def of_shape(self, shape: Shape) -> Iterator[Item]:
        """The jobs of a shape, in their order."""
        return (self._by_key[key] for key in self._shapes.get(shape, ()))

    def _drop_head(self, key: Key, shape: Shape) -> None:
        _take(self._heads, (key, shape.text))


def _take(items: list[Any], item: Any) -> None:
    """Remove an item from a sorted list."""
    del items[bisect_left(items, item)]
