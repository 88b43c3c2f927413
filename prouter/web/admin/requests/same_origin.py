"""Protection from cross-site request forgery: pages of other sites must not use the API through a visitor's browser.

As in the original, bodies are JSON whatever their Content-Type. So any page could have a browser send one without a
preflight (a "simple request" of the Fetch standard). Browsers name the page's origin; programs do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import falcon

from prouter.errors import Forbidden

__all__ = ["SameOrigin", "is_foreign", "refuse_foreign"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_foreign(environ: Mapping[str, Any]) -> bool:
    """Return whether a browser sent a request (as WSGI environment) for a page of another origin.

    A proxy may have changed Host, so X-Forwarded-Host counts, from any client: no page can set it without a preflight.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and _is_elsewhere(environ, origin)


def _is_elsewhere(environ: Mapping[str, Any], origin: str) -> bool:
    """Return whether an origin, or a URL below it, is of another host than the request."""
    try:
        asked_by = urlsplit(origin).netloc.lower()
    except ValueError:
        return True
    hosts = (environ.get("HTTP_HOST", ""), environ.get("HTTP_X_FORWARDED_HOST", ""))
    return not asked_by or asked_by not in [host.lower() for host in hosts]


def refuse_foreign(req: falcon.Request) -> None:
    """Refuse a foreign request that changes something although its method is safe.

    Browsers send no Origin with GET, and over plain http no Sec-Fetch-Site. Then Referer counts, if there is one.

    Raises:
        Forbidden: the request comes from another site's page.
    """
    env = req.env
    untold = "HTTP_SEC_FETCH_SITE" not in env and "HTTP_ORIGIN" not in env
    if is_foreign(env) or (untold and "HTTP_REFERER" in env and _is_elsewhere(env, env["HTTP_REFERER"])):
        raise _refusal()


def _refusal() -> Forbidden:
    return Forbidden("pages of other sites may not use this API", code="cross_site")


class SameOrigin:
    """Falcon middleware that refuses foreign requests whose methods change something."""

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Check the origin; run before the resource (Falcon).

        Raises:
            Forbidden: the request comes from another site's page.
        """
        # Browsers send Origin with these methods. Referer does not count, because programs send it, too.
        if req.method not in _SAFE_METHODS and is_foreign(req.env):
            raise _refusal()
