"""Shutdown of the router on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from prouter.web.admin.requests.body import discard_body
from prouter.web.admin.requests.context import ApiRequest

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Shutdown"]


class Shutdown:
    """The resource ``/shutdown``."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    def on_post(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Have the router host drain and exit, and respond at once."""
        discard_body(req)
        self._router.call("shutdown", {}, timeout=30)
        resp.data = b""
