"""Where visitors find a job: its root, below its path or at its own host name, and paths below it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.addresses.placing import own_origin

__all__ = ["ENTER", "SHARED", "Asked", "asked_for", "origin_of", "public_of", "root_of", "safe_path", "usable"]

ENTER = b"/.prouter/enter"
"""Path below a job's root where a code is exchanged for a pass. The router answers there, never the job."""
SHARED = b"shared"
"""Segment after a job's path, before a pass and the job's own paths: where sandboxed visitors are."""
_HTTP = b"http"
_UID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_SAFE = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?=[/?#;]|%2f|%5c|\Z)", re.IGNORECASE)
_LONGEST = 4096
"""Characters of a path that a visitor is led to."""


class Asked(NamedTuple):
    """What a request for a job asks for.

    Attributes:
        connection: uid of the agent's connection; empty under the job's own host name.
        job: uid of the job.
        target: raw, without the job's prefix unless `own_host`.
        own_host: whether the job is asked for under its own host name.
        key: the pass in the path of a sandboxed visitor; None elsewhere.
    """

    connection: str
    job: str
    target: bytes
    own_host: bool
    key: bytes | None = None

    @property
    def prefix(self) -> bytes:
        """Path before `target`, without that of a proxy in front."""
        if self.own_host:
            return b""
        base = f"/jobs/{self.connection}/{self.job}/".encode("latin-1")
        return base + _HTTP if self.key is None else base + SHARED + b"/" + self.key

    @property
    def shown(self) -> str:
        """The path for the audit log: without the query, and without a pass."""
        path = self.target.partition(b"?")[0].decode("latin-1")
        hidden = self if self.key is None else self._replace(key=b"-")
        return hidden.prefix.decode("latin-1") + path


def asked_for(target: bytes) -> Asked | None:
    """Return what a request asks for by its path; None if it is not for a job."""
    if not target.startswith(b"/jobs/"):
        return None
    path, mark, query = target.partition(b"?")
    parts = path.split(b"/", 5)
    if len(parts) < 5 or not parts[2]:
        return None
    rest = b"/" + parts[5] if len(parts) == 6 else b""
    key: bytes | None = None
    if parts[4] == SHARED and rest:
        key, slash, rest = parts[5].partition(b"/")
        rest = slash + rest
    elif parts[4] != _HTTP:
        return None
    return Asked(parts[2].decode("latin-1"), parts[3].decode("latin-1"), rest + mark + query, False, key)


def origin_of(public: Public) -> str:
    """Return the router's address as the client sees it, without a slash at its end."""
    return f"{public.proto.decode('ascii')}://{public.host.decode('latin-1')}{public.prefix.decode('latin-1')}"


@lru_cache(4)
def public_of(url: str) -> Public:
    """Return ``control.url`` as an address."""
    parts = urlsplit(url)
    return Public(parts.scheme.encode("ascii"), parts.netloc.encode("ascii"), parts.path.rstrip("/").encode("ascii"))


def root_of(public: Public, connection: str, job: str, domain: str | None) -> str:
    """Return the URL of a job's root, without a slash at its end.

    Args:
        public: the router's address.
        domain: ``control.job_domain``; without one the root is below the job's path.
    """
    if domain:
        return own_origin(public, job, domain)
    return f"{origin_of(public)}/jobs/{connection}/{job}/http"


def usable(uid: str) -> bool:
    """Whether a uid out of a path can be written into a header field."""
    return _UID.fullmatch(uid) is not None


def safe_path(path: str) -> str:
    """Return a path below a root, with its query, to which a visitor can be led; ``/`` if it leads anywhere else."""
    bare = path.partition("?")[0].partition("#")[0]
    if len(path) > _LONGEST or _SAFE.fullmatch(path) is None or _DOTS.search(bare) is not None:
        return "/"
    return path
