"""Middleware around every request: request ids and counters, HEAD as GET without a body, types of empty responses."""

from __future__ import annotations

import time
from typing import Any

import falcon
from falcon.routing import CompiledRouter

from prouter.web.admin.operation import BYTES
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.metrics import counters

__all__ = ["EmptyResponses", "HeadRequests", "RequestLog", "Router"]

_NO_TYPE = frozenset({204, 304})
"""Statuses of responses without body and type (RFC 9110 sections 15.3.5 and 15.4.5)."""


class RequestLog:
    """Middleware that adds the request id to the response and counts the response for ``/metrics``."""

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Run after the resource, also after errors (Falcon)."""
        resp.set_header("X-Request-ID", req.id)
        counters.current().count_response(counters.API, req.method, resp.status_code, time.monotonic() - req.began)


class Router(CompiledRouter):
    """Falcon's router, where every resource with GET has HEAD, too (RFC 9110 section 9.1)."""

    def map_http_methods(self, resource: object, **kwargs: Any) -> Any:
        """Map HTTP methods to the resource's methods (Falcon)."""
        methods: Any = super().map_http_methods(resource, **kwargs)
        if "GET" in methods:
            methods.setdefault("HEAD", methods["GET"])
        return methods


class HeadRequests:
    """Middleware that closes the body of a response to HEAD, which Falcon does not."""

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Run after the resource, also after errors (Falcon)."""
        if req.method == "HEAD" and resp.stream is not None:
            close = getattr(resp.stream, "close", None)
            if close is not None:
                close()
            resp.stream = iter(())  # of unknown length


class EmptyResponses:
    """Middleware that types empty responses ``application/octet-stream``, as in the original.

    Falcon's default is JSON, which clients would try to parse.
    """

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Run after the resource, also after errors (Falcon)."""
        if req.method == "HEAD" or resp.content_type is not None or resp.status_code in _NO_TYPE:
            return
        if not (resp.text or resp.data) and resp.media is None and resp.stream is None:
            resp.content_type = BYTES
