"""The public keys with which jobs' servers verify what they are told about their visitors."""

from __future__ import annotations

import falcon

from prouter.access.assertion_keys import AssertionKeys
from prouter.config import ConfigError
from prouter.errors import Overloaded
from prouter.web.admin.requests.context import ApiRequest, send_json

__all__ = ["PublicKeys"]

_KEPT = 300
"""Seconds for which the answer may be kept: less than a key is published before it signs."""


class PublicKeys:
    """``/.well-known/jwks.json``

    Args:
        keys: those that sign; None if jobs are told nothing.
    """

    def __init__(self, keys: AssertionKeys | None) -> None:
        self._keys = keys

    def on_get(self, _req: ApiRequest, resp: falcon.Response) -> None:
        """Send the keys (RFC 7517 section 5)."""
        try:
            send_json(resp, {"keys": self._keys.published() if self._keys is not None else []})
        except ConfigError as error:
            raise Overloaded(f"the keys cannot be used: {error}", code="keys_unusable", retry_after=5) from error
        resp.set_header("Cache-Control", f"public, max-age={_KEPT}")
        resp.delete_header("Expires")

    on_head = on_get
