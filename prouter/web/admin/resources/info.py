"""Identity of the router."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import falcon

from prouter.web.admin.requests.context import ApiRequest
from prouter.web.admin.requests.frequent import Ready

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["Info"]


class Info:
    """The resource ``/info``. A running router's identity does not change, so each worker makes the response once."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router
        self._answer: bytes | None = None

    def ready(self) -> Ready | None:
        """Return the response if it was made already."""
        return Ready(self._answer, "") if self._answer is not None else None

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Send uid, name and platform."""
        if self._answer is None:
            info = self._router.call("info", {}, timeout=30)
            self._answer = json.dumps({"auth": info["auth"], "platform": info["platform"]}).encode("ascii")
        resp.data = self._answer

    on_head = on_get
