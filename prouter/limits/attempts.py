"""Failed attempts to sign in, of each address and of all together.

Whoever is over the budget is told to wait. That never concerns valid credentials: they count whoever shows them, so
nobody can lock out others behind the same address.
"""

from __future__ import annotations

import time

from prouter.limits.buckets import Buckets

__all__ = ["Attempts"]

_MINUTE = 60.0
_ALL = "*"
"""The key of the bucket of all addresses."""


class Attempts:
    """The budgets of failed attempts.

    Args:
        buckets: the shared table of addresses.
        total: a table of its own for the bucket of all addresses, which none of them can take the place of.
        per_address: failures of an address per minute; 0 for no limit.
        in_all: failures of all addresses per minute; 0 for no limit.
    """

    def __init__(self, buckets: Buckets, total: Buckets, per_address: float, in_all: float) -> None:
        self.per_address = per_address
        self.in_all = in_all
        self._buckets = buckets
        self._total = total

    def failed(self, address: str) -> float:
        """Count a failure; return 0, or the seconds after which the address may fail again.

        What is over an address's own budget does not count for all, so that one address cannot use up everybody's.

        Args:
            address: as `prouter.limits.clients.client_key` gives it.
        """
        now = time.monotonic()
        return _take(self._buckets, address, self.per_address, now) or _take(self._total, _ALL, self.in_all, now)

    def blocked(self, address: str) -> float:
        """Return what `failed` would, and count nothing: 0 if the address may try."""
        now = time.monotonic()
        return _wait(self._buckets, address, self.per_address, now) or _wait(self._total, _ALL, self.in_all, now)

    def address_blocked(self, address: str) -> bool:
        """Whether the address is over its own budget."""
        return _wait(self._buckets, address, self.per_address, time.monotonic()) > 0


def _take(buckets: Buckets, key: str, per_minute: float, now: float) -> float:
    return buckets.take(key, per_minute / _MINUTE, max(1.0, per_minute), now) if per_minute else 0.0


def _wait(buckets: Buckets, key: str, per_minute: float, now: float) -> float:
    return buckets.wait(key, per_minute / _MINUTE, max(1.0, per_minute), now) if per_minute else 0.0
