"""What the jobs of each owner take: how many have not ended, and the bytes in their sandboxes."""

from __future__ import annotations

from collections import Counter

__all__ = ["Accounts"]

Owner = str | None
"""None for the jobs that nobody owns; they share one account."""


class Accounts:
    """The accounts of all owners.

    Agents measure sandboxes again and again. In between, the announced sizes of uploads count, so that many uploads at
    once do not each find the same space. The next measurement replaces them.
    """

    def __init__(self) -> None:
        self._alive: dict[str, Owner] = {}
        self._jobs: Counter[Owner] = Counter()
        self._sizes: dict[str, tuple[Owner, int]] = {}
        self._bytes: Counter[Owner] = Counter()

    def jobs(self, owner: Owner) -> int:
        """How many jobs of an owner have not ended."""
        return self._jobs[owner]

    def bytes(self, owner: Owner) -> int:
        """Bytes in the sandboxes of an owner's jobs."""
        return self._bytes[owner]

    def knows(self, uid: str) -> bool:
        """Whether anything of a job counts for anybody."""
        return uid in self._alive or uid in self._sizes

    def count(self, uid: str, owner: Owner, *, alive: bool, kept: bool) -> None:
        """Note a job's state.

        Args:
            alive: whether it has not ended.
            kept: whether its agent is there and has its sandbox.
        """
        if uid in self._alive:
            _take(self._jobs, self._alive.pop(uid), 1)
        if alive:
            self._alive[uid] = owner
            self._jobs[owner] += 1
        size = self._sizes.get(uid)
        if size is not None:
            self._set(uid, owner, size[1] if kept else 0)

    def forget(self, uid: str) -> None:
        """Drop a job."""
        self.count(uid, None, alive=False, kept=False)

    def measured(self, uid: str, owner: Owner, size: int) -> None:
        """Note the bytes in a job's sandbox, as its agent has measured them."""
        self._set(uid, owner, size)

    def expect(self, uid: str, owner: Owner, size: int) -> None:
        """Note that an upload of `size` bytes into a job's sandbox begins."""
        known = self._sizes.get(uid)
        self._set(uid, owner, size + (known[1] if known is not None else 0))

    def _set(self, uid: str, owner: Owner, size: int) -> None:
        before = self._sizes.pop(uid, None)
        if before is not None:
            _take(self._bytes, before[0], before[1])
        if size:
            self._sizes[uid] = (owner, size)
            self._bytes[owner] += size


def _take(counter: Counter[Owner], owner: Owner, amount: int) -> None:
    counter[owner] -= amount
    if not counter[owner]:
        del counter[owner]
