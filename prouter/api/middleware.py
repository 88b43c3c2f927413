"""What happens around every request: its id goes into the answer, and it is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import falcon

from prouter.api.context import ApiRequest

__all__ = ["RequestLog"]


class RequestLog:
    """Puts the request id into the answer and counts answers by method and status class, for /metrics.

    Attributes:
        answered: how many answers of each ``(method, "2xx")``.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()

    def process_response(self, req: ApiRequest, resp: falcon.Response, _resource: Any, _succeeded: bool) -> None:
        """Falcon calls this after the resource, also after errors."""
        resp.set_header("X-Request-ID", req.id)
        method = req.method if req.method in falcon.HTTP_METHODS else "other"
        self.answered[method, f"{str(resp.status)[0]}xx"] += 1
