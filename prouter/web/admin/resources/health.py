"""Health and metrics of the router, for load balancers and monitoring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import falcon
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from prouter.errors import Overloaded, PRouterError
from prouter.web.admin.requests.context import ApiRequest, send_json
from prouter.web.metrics import counters
from prouter.web.metrics.exposition import families
from prouter.web.metrics.vitals import publish

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Health", "Metrics"]

_READY_TIMEOUT = 2.0
"""Seconds the broker may take to reply while the router counts as ready."""


class Health:
    """The resources ``/healthz`` and ``/readyz``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get_live(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Respond: this worker is alive."""
        send_json(resp, {"status": "ok"})

    on_head_live = on_get_live

    def on_get_ready(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Respond whether the router takes new requests: the broker is linked and the router does not drain."""
        if self._router.ready and not self._router.router_draining:
            try:
                self._router.catch_up(_READY_TIMEOUT)
            except PRouterError as error:
                raise Overloaded(f"the broker is away: {error.detail}", code="broker_away", retry_after=1) from error
        if self._router.router_draining:
            raise Overloaded("the router drains", code="draining", retry_after=5)
        if not self._router.ready:
            raise Overloaded("the broker is away", code="broker_away", retry_after=1)
        send_json(resp, {"status": "ready"})

    on_head_ready = on_get_ready


class Metrics:
    """The resource ``/metrics``: figures of the broker and all workers, in the format that the client prefers."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send all figures, without the broker's while it is away."""
        board = counters.current()
        board.ask()
        publish(board, self._router)
        try:
            broker = self._router.call("stats", {}, timeout=2)["metrics"]
        except PRouterError:
            broker = None
        totals = board.totals()
        encode, resp.content_type = choose_encoder(req.get_header("Accept") or "")
        resp.data = encode(_Registry(families(totals, broker)))

    on_head = on_get


class _Registry:
    """A registry as prometheus_client reads it."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
