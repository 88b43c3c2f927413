"""Web pages of other sites must not use the API through a visitor's browser (cross-site request forgery).

Bodies are JSON whatever their Content-Type, as in the original, so any page could have a browser send one without
asking first (a "simple request" of the Fetch standard). Browsers say who asked; programs send neither header.
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
    """Whether a browser sent the request described by a WSGI environment for a page of another origin.

    Host names may have been changed on the way here; X-Forwarded-Host counts from anybody, because no page can set it
    without being asked first.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and _is_elsewhere(environ, origin)


def _is_elsewhere(environ: Mapping[str, Any], origin: str) -> bool:
    """Whether an origin, or an address below it, is not of the host that was asked."""
    try:
        asked_by = urlsplit(origin).netloc.lower()
    except ValueError:
        return True
    hosts = (environ.get("HTTP_HOST", ""), environ.get("HTTP_X_FORWARDED_HOST", ""))
    return not asked_by or asked_by not in [host.lower() for host in hosts]


def refuse_foreign(req: falcon.Request) -> None:
    """To be called where a request changes something though its method does not tell.

    Browsers send no Origin with GET, and over plain http no Sec-Fetch-Site: then Referer counts, if there is one.

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
    """Falcon middleware that refuses what would change something for another site's page."""

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Falcon calls this before the resource.

        Raises:
            Forbidden: the request comes from another site's page.
        """
        # Browsers send Origin with these methods, so Referer, which programs behind proxies may have, does not count.
        if req.method not in _SAFE_METHODS and is_foreign(req.env):
            raise _refusal()
