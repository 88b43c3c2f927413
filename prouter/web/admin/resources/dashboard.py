"""The dashboard: one static page that gets its data from the API."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import falcon

from prouter.access.roles import OPEN_ROUTER
from prouter.web.admin.pages.own_pages import OwnPages, isolated
from prouter.web.admin.requests.context import ApiRequest, principal_of

__all__ = ["Dashboard"]

_PROOF = b'<meta name="prouter-proof" content="">'
"""The place in the page for its proof, which its script sends with each request."""


class Dashboard:
    """The resource ``/``. Its script and style are part of the page, and the only ones that it runs.

    Args:
        pages: makes the page's proof.
    """

    def __init__(self, pages: OwnPages) -> None:
        self._pages = pages
        self._page = (files("prouter.web.admin") / "static" / "dashboard.html").read_bytes()
        assert _PROOF in self._page

    def on_get(self, req: ApiRequest, resp: falcon.Response) -> None:
        """Send the page."""
        principal = principal_of(req)
        proof = self._pages.proof_for(req, principal) if principal is not OPEN_ROUTER else ""
        filled = _PROOF.replace(b'""', f'"{escape(proof)}"'.encode("ascii"))
        isolated(resp, self._page.replace(_PROOF, filled))

    on_head = on_get
