"""Token buckets in memory that processes share: a fixed number of them, whatever the number of keys.

A bucket is one number: the monotonic time at which it is full again (the generic cell rate algorithm). A bucket that is
full is the same as one that was never used, so its place is free for another key.

The places are in sets of eight, and a key may use those of one set, which a secret hash chooses. A key that finds no
free place takes that of the bucket that is full again first. So a client that used up its bucket gets it back by
floods from other addresses only if these use up theirs as well, which gains nothing. A new key always finds a place:
nobody is refused because of what others do.

There is no lock. Two processes that take from one bucket in the same microsecond may count once. The worst that comes
of it is a bucket for each process.
"""

from __future__ import annotations

import mmap
import secrets
from hashlib import blake2b

__all__ = ["Buckets"]

_WAYS = 8
"""Places in a set."""
_CELL = 8
_REMEMBERED = 1024
"""Keys whose hashes a process remembers."""
_TOLERANCE = 1e-6
"""Seconds: below what rounding may add to a time."""


class Buckets:
    """A table of token buckets. Processes that are forked after it was made share it.

    Args:
        sets: number of sets of eight buckets; each set takes 128 bytes.
    """

    def __init__(self, sets: int) -> None:
        view = memoryview(mmap.mmap(-1, 2 * sets * _WAYS * _CELL))
        half = sets * _WAYS * _CELL
        self._keys = view[:half].cast("Q")
        """By place: the hash of the key whose bucket is there."""
        self._full_at = view[half:].cast("d")
        """By place: the time at which the bucket is full."""
        self._sets = sets
        self._secret = secrets.token_bytes(16)
        self._hashes: dict[str, int] = {}

    def take(self, key: str, rate: float, burst: float, now: float, cost: float = 1.0) -> float:
        """Take tokens from a key's bucket; return 0, or the seconds until there are enough, and take none.

        Args:
            rate: tokens per second that flow into the bucket.
            burst: tokens that a full bucket holds, at least 1.
            now: monotonic time.
            cost: tokens to take, at most `burst`.
        """
        place = self._place(key)
        full_at = self._full_at[place] if place >= 0 else now
        # A configuration that was reloaded may have made the bucket smaller.
        used = min(max(full_at - now, 0.0), burst / rate)
        wait = used + (cost - burst) / rate
        if wait > _TOLERANCE:
            return wait
        if place < 0:
            place = self._new_place(key)
        self._full_at[place] = now + used + cost / rate
        return 0.0

    def wait(self, key: str, rate: float, burst: float, now: float, cost: float = 1.0) -> float:
        """Return what `take` would, and take nothing."""
        place = self._place(key)
        used = min(max(self._full_at[place] - now, 0.0), burst / rate) if place >= 0 else 0.0
        wait = used + (cost - burst) / rate
        return wait if wait > _TOLERANCE else 0.0

    def _place(self, key: str) -> int:
        """Return where the key's bucket is, -1 if it is full and nowhere."""
        hashed = self._hash(key)
        first = hashed % self._sets * _WAYS
        keys = self._keys[first : first + _WAYS].tolist()
        return first + keys.index(hashed) if hashed in keys else -1

    def _new_place(self, key: str) -> int:
        hashed = self._hash(key)
        first = hashed % self._sets * _WAYS
        times = self._full_at[first : first + _WAYS].tolist()
        place = first + times.index(min(times))
        self._keys[place] = hashed
        return place

    def _hash(self, key: str) -> int:
        hashed = self._hashes.get(key)
        if hashed is None:
            if len(self._hashes) >= _REMEMBERED:
                self._hashes.clear()
            data = key.encode("utf-8", "surrogatepass")
            hashed = int.from_bytes(blake2b(data, digest_size=_CELL, key=self._secret).digest(), "little") or 1
            self._hashes[key] = hashed
        return hashed
