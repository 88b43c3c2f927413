"""What jobs take of their agents' resources, as far as this router has created them."""

from __future__ import annotations

from prouter.resources import Amounts, add, take

__all__ = ["Taken"]

_NOTHING: dict[str, float] = {}


class Taken:
    """By connection, what its jobs take; jobs that are being created count."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[str, Amounts]] = {}
        self._sums: dict[str, dict[str, float]] = {}

    def of(self, connection: str) -> Amounts:
        """What the jobs of a connection take together."""
        return self._sums.get(connection, _NOTHING)

    def take(self, uid: str, connection: str, amounts: Amounts) -> None:
        """Note what a job takes, instead of what was noted before."""
        known = self._jobs.get(uid)
        if known is not None:
            if known == (connection, amounts):
                return
            self.give_back(uid)
        if amounts:
            self._jobs[uid] = (connection, amounts)
            add(self._sums.setdefault(connection, {}), amounts)

    def give_back(self, uid: str) -> None:
        """Note that a job takes nothing any more. Idempotent."""
        known = self._jobs.pop(uid, None)
        if known is None:
            return
        sums = self._sums[known[0]]
        take(sums, known[1])
        if not sums:
            del self._sums[known[0]]
