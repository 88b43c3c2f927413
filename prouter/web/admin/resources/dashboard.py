"""The dashboard: one static page that gets its data from the API."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import falcon

from prouter.web.admin.requests.context import ApiRequest

__all__ = ["Dashboard"]


class Dashboard:
    """The resource ``/``. Content-Security-Policy allows only the page's own script and style, by their hashes."""

    def __init__(self) -> None:
        self._page = (files("prouter.web.admin") / "static" / "dashboard.html").read_bytes()
        self._policy = (
            f"default-src 'none'; style-src {_hash(self._page, b'style')}; script-src {_hash(self._page, b'script')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Send the page."""
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Content-Security-Policy", self._policy)
        resp.set_header("X-Content-Type-Options", "nosniff")
        resp.data = self._page

    on_head = on_get


def _hash(page: bytes, tag: bytes) -> str:
    """Return the source expression that allows the page's one inline element of this kind (CSP 3, section 2.3.1)."""
    found = re.search(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode('ascii')}'"
