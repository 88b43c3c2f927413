"""Limits of requests by the router's configuration: of each owner, and of clients without valid credentials."""

from __future__ import annotations

import logging
import time

from prouter.config import RouterConfig
from prouter.errors import Limit, TooManyRequests
from prouter.limits.attempts import REQUEST, SIGN_IN, Attempts
from prouter.limits.buckets import Buckets

__all__ = ["BURST", "RequestLimits", "limits_for", "setup"]

log = logging.getLogger("prouter.web")

BURST = 10.0
"""Seconds' worth of requests that may come at once."""
_TELL_EVERY = 10.0
"""Seconds between two log lines of a worker about the same limit."""
_OWNERS, _CLIENTS, _FAILURES = 1024, 4096, 4096
"""Sets of eight buckets: for owners, for addresses without credentials, and for those with wrong ones."""

_HINT = " (%s): wait %.1f s, or send a valid token, which is let in at any time"

Tables = tuple[Buckets, Buckets, Buckets, Buckets]


class RequestLimits:
    """Decides about requests, together with the other workers.

    Attributes:
        per_owner: requests per second of one owner; 0 for no limit.
        attempts: budgets of failed sign-ins.
    """

    def __init__(self, config: RouterConfig, tables: Tables) -> None:
        limits = config.limits
        self.per_owner = limits.requests_per_owner
        self._owners, self._clients, failures, total = tables
        self._per_address = limits.unauthenticated_per_address
        self._told: dict[str, float] = {}
        """By limit, the monotonic time of the last log line."""
        self.attempts = Attempts(failures, total, limits.failures_per_address, limits.failures_in_all)

    def refusal(self, owner: str) -> TooManyRequests | None:
        """Count a request of an owner; return the error if there were too many.

        Args:
            owner: empty for those whom nobody asked for credentials: they share one budget.
        """
        rate = self.per_owner
        if not rate:
            return None
        wait = self._owners.take(owner, rate, max(1.0, BURST * rate), time.monotonic())
        if not wait:
            return None
        who = f"'{owner}' sends" if owner else "this router's clients without an access token send"
        text = f"{who} more than {rate:g} requests per second (limits.requests_per_owner): wait {wait:.1f} s"
        return self._over(text, wait, Limit("limits.requests_per_owner", rate), owner)

    def unauthenticated(self, client: str, *, failed: bool) -> TooManyRequests | None:
        """Count a request without valid credentials; return the error if there were too many.

        Args:
            client: as `prouter.limits.clients.client_key` gives it.
            failed: whether it showed credentials that do not count.
        """
        rate = self._per_address
        if rate:
            wait = self._clients.take(client, rate, max(1.0, BURST * rate), time.monotonic())
            if wait:
                limit = Limit("limits.unauthenticated_per_address", rate)
                text = f"more than {rate:g} requests per second without a valid access token come from your address"
                return self._over(text + _HINT % (limit.name, wait), wait, limit, client)
        if failed:
            return self._failed(client, REQUEST)
        return None

    def sign_in_failed(self, client: str) -> TooManyRequests | None:
        """Count a failed sign-in; return the error if there were too many.

        Args:
            client: as `prouter.limits.clients.client_key` gives it.
        """
        return self._failed(client, SIGN_IN)

    def _failed(self, client: str, cost: float) -> TooManyRequests | None:
        attempts = self.attempts
        wait = attempts.failed(client, cost)
        if not wait:
            return None
        if attempts.per_address and attempts.address_blocked(client, cost):
            limit = Limit("limits.failures_per_address", attempts.per_address)
            text = f"more than {limit.value:g} requests per minute with a wrong token come from your address"
        else:
            limit = Limit("limits.failures_in_all", attempts.in_all)
            text = f"more than {limit.value:g} requests per minute with wrong tokens come from everywhere"
        return self._over(text + _HINT % (limit.name, wait), wait, limit, client)

    def _over(self, text: str, wait: float, limit: Limit, who: str) -> TooManyRequests:
        now = time.monotonic()
        if now >= self._told.get(limit.name, 0.0) + _TELL_EVERY:
            self._told[limit.name] = now
            log.warning("event=limit_reached limit=%s value=%g of=%s", limit.name, limit.value, who)
        return TooManyRequests(text, retry_after=wait, limit=limit)


_tables: Tables | None = None


def setup() -> None:
    """Make the shared memory. To be called in the parent of the workers before it forks; a reload keeps it."""
    global _tables
    if _tables is None:
        _tables = Buckets(_OWNERS), Buckets(_CLIENTS), Buckets(_FAILURES), Buckets(1)


def limits_for(config: RouterConfig) -> RequestLimits:
    """Return the limits of this worker, in the memory that `setup` made, or else in its own."""
    setup()
    assert _tables is not None
    return RequestLimits(config, _tables)
