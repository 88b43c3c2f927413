"""The dashboard: one page, served as it is; everything it shows comes from the API."""

from __future__ import annotations

from importlib.resources import files

import falcon

from prouter.api.context import ApiRequest

__all__ = ["Dashboard"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class Dashboard:
    """``/``"""

    def __init__(self) -> None:
        self._page = (files("prouter.api") / "static" / "dashboard.html").read_bytes()

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """The page."""
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", _POLICY)
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.data = self._page
