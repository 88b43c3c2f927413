"""Failed attempts to sign in, of each address and of all together.

Whoever is over the budget is told to wait. That never concerns valid credentials: they count whoever shows them, so
nobody can lock out others behind the same address.
"""

from __future__ import annotations

import time

from prouter.limits.buckets import Buckets

__all__ = ["REQUEST", "SIGN_IN", "Attempts"]

REQUEST, SIGN_IN = 1.0, 30.0
"""What a request with a wrong token counts, and a failed sign-in. Programs whose token has expired send many requests;
people sign in seldom.
"""

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

    def failed(self, address: str, cost: float = SIGN_IN) -> float:
        """Count a failure; return 0, or the seconds after which the address may fail again.

        What is over an address's own budget does not count for all, so that one address cannot use up everybody's.

        Args:
            address: as `prouter.limits.clients.client_key` gives it.
            cost: how many failures it counts for, `SIGN_IN` or `REQUEST`.
        """
        now = time.monotonic()
        own = _take(self._buckets, address, self.per_address, now, cost)
        return own or _take(self._total, _ALL, self.in_all, now, cost)

    def blocked(self, address: str, cost: float = SIGN_IN) -> float:
        """Return what `failed` would, and count nothing."""
        now = time.monotonic()
        own = _wait(self._buckets, address, self.per_address, now, cost)
        return own or _wait(self._total, _ALL, self.in_all, now, cost)

    def address_blocked(self, address: str, cost: float = SIGN_IN) -> bool:
        """Whether the address is over its own budget."""
        return _wait(self._buckets, address, self.per_address, time.monotonic(), cost) > 0


def _take(buckets: Buckets, key: str, per_minute: float, now: float, cost: float) -> float:
    burst = max(1.0, per_minute)
    return buckets.take(key, per_minute / _MINUTE, burst, now, min(cost, burst)) if per_minute else 0.0


def _wait(buckets: Buckets, key: str, per_minute: float, now: float, cost: float) -> float:
    burst = max(1.0, per_minute)
    return buckets.wait(key, per_minute / _MINUTE, burst, now, min(cost, burst)) if per_minute else 0.0
