"""What happens around every request: its id goes into the answer, it is counted, and HEAD is GET without a body."""

from __future__ import annotations

import time
from typing import Any

import falcon
from falcon.routing import CompiledRouter

from prouter.api import figures
from prouter.api.context import ApiRequest

__all__ = ["HeadRequests", "RequestLog", "Router"]


class RequestLog:
    """Puts the request id into the answer and counts it for /metrics."""

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        resp.set_header("X-Request-ID", req.id)
        figures.current().answered(figures.API, req.method, resp.status_code, time.monotonic() - req.began)


class Router(CompiledRouter):
    """Falcon's router; what takes GET takes HEAD too (RFC 9110 section 9.1)."""

    def map_http_methods(self, resource: object, **kwargs: Any) -> Any:
        """See Falcon."""
        methods: Any = super().map_http_methods(resource, **kwargs)
        if "GET" in methods:
            methods.setdefault("HEAD", methods["GET"])
        return methods


class HeadRequests:
    """Gives back what a resource has opened for a body that is not wanted; Falcon leaves it alone."""

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        if req.method == "HEAD" and resp.stream is not None:
            close = getattr(resp.stream, "close", None)
            if close is not None:
                close()
            resp.stream = iter(())  # Its length is not known.
