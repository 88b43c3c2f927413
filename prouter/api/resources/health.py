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

_READY_TIMEOUT = 2.0
"""Seconds the broker may take to answer while the router counts as ready."""
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")
_GROWS = re.compile(r"_total(_|$)|_cpu_seconds$|_messages_|_loop_turns$|_store_(failures|written)$|_events_last$")
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
    """``/metrics``: the broker's figures, and those of the worker that answers, in Prometheus's text format."""

    def __init__(self, router: RouterClient, requests: RequestLog) -> None:
        self._router = router
        self._requests = requests
        self._started = time.time()

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """All figures; without the broker's when it is away."""
        text = _Exposition()
        text.add("prouter_info", 1, version=__version__)
        try:
            broker = self._router.call("stats", {}, timeout=2)["metrics"]
            text.add("prouter_broker_up", 1)
            for name, value in sorted(broker.items()):
                text.add(f"prouter_broker_{_name(name)}", value)
        except PRouterError:
            text.add("prouter_broker_up", 0)
        worker = self._router.uid
        usage = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            **self._router.stats(),
            "greenlets": _greenlets(),
            "start_time_seconds": self._started,
            "cpu_seconds_total": usage.ru_utime + usage.ru_stime,
            "max_resident_memory_bytes": usage.ru_maxrss * 1024,
        }
        for name, value in sorted(figures.items()):
            text.add(f"prouter_worker_{_name(name)}", value, worker=worker)
        for (method, status), count in sorted(self._requests.answered.items()):
            text.add("prouter_worker_requests_total", count, worker=worker, method=method, status=status)
        resp.content_type = _METRICS_TYPE
        resp.data = text.encode()


class _Exposition:
    """Prometheus's text format; samples of one metric are added one after the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._last = ""

    def add(self, name: str, value: float, **labels: str) -> None:
        """A sample; figures that only grow are known by their names."""
        if name != self._last:
            self._last = name
            self._lines.append(f"# TYPE {name} {'counter' if _GROWS.search(name) else 'gauge'}")
        shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
        self._lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")

    def encode(self) -> bytes:
        """The whole page."""
        return ("\n".join(self._lines) + "\n").encode("utf-8")


def _greenlets() -> int:
    """Greenlets that live in this process; what existed when it began to serve (`gc.freeze`) is not looked at."""
    return sum(issubclass(type(thing), greenlet) and not thing.dead for thing in gc.get_objects())


def _name(name: str) -> str:
    return _NOT_A_NAME.sub("_", name)
