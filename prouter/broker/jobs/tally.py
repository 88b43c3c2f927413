"""Numbers and bytes of jobs, whether they are in memory or only in the database."""

from __future__ import annotations

from collections import Counter

from prouter.broker.jobs.entry import Entry
from prouter.jobs import State

__all__ = ["KEEPING", "Tally"]

KEEPING = 600
"""Bytes that a job takes in addition to its record."""
_FINISHED, _CLOSED = State.FINISHED.value, State.CLOSED.value


class Tally:
    """Sums over all jobs that the table knows.

    Attributes:
        states: number of jobs by state.
        ended_bytes: bytes of the jobs that have ended: records, and what each takes in addition.
    """

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.ended_bytes = 0
        self._live_bytes: Counter[str] = Counter()
        self._remembered: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()

    @property
    def ended(self) -> int:
        """How many jobs have ended."""
        return self.states[_FINISHED] + self.states[_CLOSED]

    def live_bytes(self, connection: str) -> int:
        """Bytes of the records of a connection's jobs that have not ended."""
        return self._live_bytes[connection]

    def remembered(self, connection: str) -> int:
        """How many of a connection's jobs are known, removed ones included."""
        return self._remembered[connection]

    def kept(self, connection: str) -> int:
        """How many of a connection's jobs were not removed."""
        return self._kept[connection]

    def add_stored(self, connection: str, state: str, jobs: int, size: int) -> None:
        """Count so many ended jobs, with so many bytes of records together."""
        self.states[state] += jobs
        self.ended_bytes += size + jobs * KEEPING
        self._remembered[connection] += jobs
        if state != _CLOSED:
            self._kept[connection] += jobs

    @staticmethod
    def known(entry: Entry) -> None:
        """Note that a job that was read from the database is counted."""
        entry.tallied, entry.counted = entry.state.value, entry.size + KEEPING

    def count(self, entry: Entry) -> None:
        """Count a job as it is now, instead of as it was when it was counted last."""
        self.drop(entry)
        self._add(entry, 1, entry.size + KEEPING, entry.state.value)
        entry.tallied, entry.counted = entry.state.value, entry.size + KEEPING

    def drop(self, entry: Entry) -> None:
        """Count a job no more. Idempotent. To be called before its connection changes."""
        if entry.tallied:
            self._add(entry, -1, -entry.counted, entry.tallied)
            entry.tallied, entry.counted = "", 0

    def _add(self, entry: Entry, jobs: int, size: int, state: str) -> None:
        connection = entry.connection
        self.states[state] += jobs
        _add(self._remembered, connection, jobs)
        if state != _CLOSED:
            _add(self._kept, connection, jobs)
        if state in (_FINISHED, _CLOSED):
            self.ended_bytes += size
        else:
            _add(self._live_bytes, connection, size)


def _add(counter: Counter[str], connection: str, amount: int) -> None:
    left = counter[connection] + amount
    if left:
        counter[connection] = left
    else:
        counter.pop(connection, None)
