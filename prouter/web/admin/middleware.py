"""What happens around every request: its id goes into the answer, it is counted, HEAD is GET without a body,
and no body is no JSON.
"""

from __future__ import annotations

import time
from typing import Any

import falcon
from falcon.routing import CompiledRouter

from prouter.web.admin.operations import BYTES
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.metrics import counters

__all__ = ["EmptyAnswers", "HeadRequests", "RequestLog", "Router"]

_NO_TYPE = frozenset({204, 304})
"""Statuses whose answers have neither body nor type (RFC 9110 sections 15.3.5 and 15.4.5)."""


class RequestLog:
    """Puts the request id into the answer and counts it for /metrics."""

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        resp.set_header("X-Request-ID", req.id)
        counters.current().answered(counters.API, req.method, resp.status_code, time.monotonic() - req.began)


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


class EmptyAnswers:
    """Keeps answers without a body from being called JSON, which clients that go by the type would try to parse.

    They are `application/octet-stream`, as in the original.
    """

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        if req.method == "HEAD" or resp.content_type is not None or resp.status_code in _NO_TYPE:
            return
        if not (resp.text or resp.data) and resp.media is None and resp.stream is None:
            resp.content_type = BYTES
