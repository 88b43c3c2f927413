"""Requests and responses of the API: the raw path, a request id, headers against caching."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from typing import Any

import falcon
from falcon.constants import MEDIA_JSON

from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.web.proxy.own_responses.pages import USABLE_ID

__all__ = ["CACHE_CONTROL", "EXPIRES", "ApiRequest", "ApiResponse", "new_id", "principal_of", "send_json"]

CACHE_CONTROL = "no-store, must-revalidate"
EXPIRES = "0"
"""For caches of HTTP/1.0, as in the original."""

_NOWHERE = "/-/-"
"""A path without a route, for paths that begin with several slashes, which Falcon's router would ignore."""
_process = uuid.uuid4().hex[:8]
_numbers = itertools.count(1)


class ApiRequest(falcon.Request):
    """A request with an id, routed by its path as sent, without percent-decoding.

    Attributes:
        id: id for the response and log lines; the client's ``X-Request-ID`` if it sent one.
        raw_path: path of the request target as sent.
        began: monotonic time at which the request arrived.
    """

    __slots__ = ("began", "id", "raw_path")

    def __init__(self, env: dict[str, Any], options: Any = None) -> None:
        super().__init__(env, options=options)
        self.began = time.monotonic()
        target: str = env.get("RAW_URI") or env["PATH_INFO"]
        path = target.partition("?")[0]
        if not path.startswith("/"):
            path = _path_of_absolute_form(path)
        self.raw_path = path
        if path != "/" and path.endswith("/"):
            path = path[:-1]
        self.path = _NOWHERE if path.startswith("//") else path
        given = env.get("HTTP_X_REQUEST_ID")
        if given is not None and USABLE_ID.fullmatch(given):
            self.id = given
        else:
            self.id = new_id()


class ApiResponse(falcon.Response):
    """A response with the headers that every response of the API has."""

    __slots__ = ()

    def __init__(self, options: Any = None) -> None:
        super().__init__(options=options)
        self.set_header("Cache-Control", CACHE_CONTROL)
        self.set_header("Expires", EXPIRES)


def new_id() -> str:
    """Return an id for a request that has none."""
    return f"{_process}{next(_numbers):08x}"


def principal_of(req: falcon.Request) -> Principal:
    """Return who sends a request that access control has let through."""
    found: Principal = req.env.get("prouter.principal", OPEN_ROUTER)
    return found


def send_json(resp: falcon.Response, body: Any, status: int = 200) -> None:
    """Respond with a JSON document."""
    resp.status = status
    resp.content_type = MEDIA_JSON
    resp.data = json.dumps(body, separators=(",", ":")).encode("ascii")


def _path_of_absolute_form(target: str) -> str:
    """Return the path in ``http://host/path`` (RFC 9112 section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return target
    _authority, slash, path = rest.partition("/")
    return slash + path if slash else "/"
