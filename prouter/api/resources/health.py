"""Whether this router works, for load balancers and monitoring."""

from __future__ import annotations

import gc
import re
import resource
import time
from typing import TYPE_CHECKING

import falcon
from greenlet import greenlet

from prouter import __version__
from prouter.api.context import ApiRequest, send_json
from prouter.api.middleware import RequestLog
from prouter.errors import Overloaded, PRouterError

if TYPE_CHECKING:
    from prouter.api.client import RouterClient

__all__ = ["Health", "Metrics"]

_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    """``/healthz`` and ``/readyz``"""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_get_live(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """This worker answers."""
        send_json(resp, {"status": "ok"})

    on_head_live = on_get_live

    def on_get_ready(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """New requests are welcome here: the broker is linked and the router does not drain."""
        if self._router.draining:
            raise Overloaded("the router drains", code="draining", retry_after=5)
        if not self._router.ready:
            raise Overloaded("the broker is away", code="broker_away", retry_after=1)
        send_json(resp, {"status": "ready"})

    on_head_ready = on_get_ready


class Metrics:
    """``/metrics``: the broker's figures, and those of the worker that answers, in Prometheus's text format."""

    def __init__(self, router: RouterClient, requests: RequestLog) -> None:
        self._router = router
        self._requests = requests
        self._started = time.time()

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """All figures; without the broker's when it is away."""
        lines = [f'prouter_info{{version="{__version__}"}} 1']
        try:
            broker = self._router.call("stats", {}, timeout=2)["metrics"]
            lines.append("prouter_broker_up 1")
            lines += [f"prouter_broker_{_name(name)} {value}" for name, value in sorted(broker.items())]
        except PRouterError:
            lines.append("prouter_broker_up 0")
        worker = f'worker="{self._router.uid}"'
        usage = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            **self._router.stats(),
            "greenlets": _greenlets(),
            "start_time_seconds": self._started,
            "cpu_seconds_total": usage.ru_utime + usage.ru_stime,
            "max_resident_memory_bytes": usage.ru_maxrss * 1024,
        }
        lines += [f"prouter_worker_{_name(name)}{{{worker}}} {value}" for name, value in sorted(figures.items())]
        lines += [
            f'prouter_worker_requests_total{{{worker},method="{method}",status="{status}"}} {count}'
            for (method, status), count in sorted(self._requests.answered.items())
        ]
        resp.content_type = _METRICS_TYPE
        resp.data = ("\n".join(lines) + "\n").encode("utf-8")

    on_head = on_get


def _greenlets() -> int:
    """Greenlets that live in this process; what existed when it began to serve (`gc.freeze`) is not looked at."""
    return sum(issubclass(type(thing), greenlet) and not thing.dead for thing in gc.get_objects())


def _name(name: str) -> str:
    return _NOT_A_NAME.sub("_", name)
