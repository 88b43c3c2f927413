"""The URL at which a person opens a job, derived from the request for the job's info.

A worker knows its public address from requests alone: from their Host, and from what trusted proxies say about scheme,
host and path (forwarded.py). So a job's URL belongs to the response, not to the job's record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.addresses.placing import own_origin

__all__ = ["JobUrls", "public_address"]

_JOB = "{job}"
_LISTED = re.compile(rb'"path":"(/jobs/[^"/]+/([^"/]+))","base_url":("[^"]*"|null)')
"""The end of a job's info in the broker's JSON. No text in that JSON can match, because its quotes are escaped."""


def public_address(environ: Mapping[str, Any]) -> Public:
    """Return the router's address as the client of a request (as WSGI environment) sees it."""
    public: Public | None = environ.get("prouter.public")
    if public is None:
        host = environ.get("HTTP_HOST", "localhost").encode("latin-1")
        public = Public(environ.get("wsgi.url_scheme", "http").encode("ascii"), host)
    return public


class JobUrls:
    """URLs of jobs, for one request.

    Args:
        environ: the request's WSGI environment.
        domain: ``control.job_domain``; without one a job is below its path.
    """

    def __init__(self, environ: Mapping[str, Any], domain: str | None) -> None:
        public = public_address(environ)
        scheme, host = public.proto.decode("ascii"), public.host.decode("latin-1")
        self._root = f"{scheme}://{host}{public.prefix.decode('latin-1')}"
        self._after = ""
        if domain:
            self._root, _, self._after = (own_origin(public, _JOB, domain) + "/").partition(_JOB)

    def url(self, job: Mapping[str, Any]) -> str | None:
        """Return the URL of a job's server by the job's info; None without a server."""
        base: str | None = job.get("base_url")
        if base is None:
            return None
        return self._root + (str(job["uid"]) + self._after if self._after else base)

    def add_to(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return a job's info with its URL."""
        return {**job, "url": self.url(job)}

    def add_to_list(self, jobs: bytes) -> bytes:
        """Return the broker's JSON list of jobs with their URLs."""
        root, after = (json.dumps(text)[1:-1].encode("ascii") for text in (self._root, self._after))

        def insert(match: re.Match[bytes]) -> bytes:
            if match[3] == b"null":
                return match[0] + b',"url":null'
            return b'%b,"url":"%b%b"' % (match[0], root, match[2] + after if after else match[3][1:-1])

        return _LISTED.sub(insert, jobs)
