"""Limits of requests to the API: Falcon middleware that counts each request before anything else looks at it."""

from __future__ import annotations

from typing import Any

from prouter.limits.requests import RequestLimits
from prouter.web.admin.access import OPEN_PATHS
from prouter.web.admin.requests.context import ApiRequest

__all__ = ["Budgets"]


class Budgets:
    """Falcon middleware that refuses requests that come too fast, whatever else is wrong with them.

    Args:
        limits: the budgets, which requests to jobs use as well.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits

    def process_request(self, req: ApiRequest, _resp: Any) -> None:
        """Count a request, unless it is for a path that is open to everybody.

        Raises:
            TooManyRequests: there are too many of its owner or, without valid credentials, of its address.
        """
        env = req.env
        if req.path in OPEN_PATHS or "prouter.client_key" not in env:
            return
        # A visitor has shown valid credentials, whether they count for this request or not.
        known = env.get("prouter.principal") or env.get("prouter.visitor")
        if known is not None:
            over = self._limits.refusal(known.name)
        else:
            failed = "HTTP_AUTHORIZATION" in env
            over = self._limits.unauthenticated(env["prouter.client_key"](), failed=failed)
        if over is not None:
            raise over
