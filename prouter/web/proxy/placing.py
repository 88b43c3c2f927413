"""Which target a job sees for a request, and where the job is, by its record and the name it was asked for under."""

from __future__ import annotations

import re

from prouter.web.proxy.forwarded import Origin, Public, as_seen_by_the_client
from prouter.web.proxy.heads import RequestHead
from prouter.web.proxy.mapping import Site, below, local_host, self_names
from prouter.web.router_client import JobRoute

__all__ = ["beside_its_root", "own_origin", "site", "target_of_job"]

_PORT = re.compile(rb":[0-9]+\Z")


def target_of_job(route: JobRoute, target: bytes, *, own_host: bool) -> bytes:
    """The target as the job knows it.

    On a host name of its own a job has its root at ``/``. One that keeps its prefix serves below that there, too; one
    that does not may name it in its links all the same.

    Args:
        target: as the client sent it, without the job's prefix unless `own_host`.
    """
    prefix, keep = route.prefix, route.record.path_mode == "keep"
    if own_host:
        if keep and _is_root(target):
            target = prefix + target
        elif not keep and below(target, prefix):
            target = target[len(prefix) :]
    elif keep:
        target = prefix + target
    return target if target[:1] == b"/" or target == b"*" else b"/" + target


def beside_its_root(route: JobRoute, head: RequestHead, target: bytes, *, own_host: bool) -> bool:
    """Whether a page is asked for at a place from which its relative links would lead astray."""
    if head.method not in (b"GET", b"HEAD") or head.upgrade:
        return False
    if own_host:
        return route.record.path_mode == "keep" and _is_root(target)
    return route.record.path_mode != "keep" and target[:1] in (b"", b"?")


def own_origin(public: Public, job: str, domain: str) -> str:
    """Scheme, host and port of a job's own host name, with the scheme and the port of `public`."""
    port = _PORT.search(public.host)
    told = port[0].decode("ascii") if port else ""
    return f"{public.proto.decode('ascii')}://{job}.{domain.strip('.')}{told}"


def site(route: JobRoute, head: RequestHead, origin: Origin, *, own_host: bool) -> Site:
    """Where the job is, for one request."""
    record, endpoint = route.record, route.record.endpoint or {}
    hidden = route.prefix if record.path_mode != "keep" else b""
    port = endpoint.get("port")
    public = as_seen_by_the_client(head, origin)
    return Site(
        prefix=public.prefix if own_host else public.prefix + hidden,
        public=public,
        names=self_names(port) if port else (),
        local=local_host(endpoint) if record.host_mode == "local" else b"",
        hidden=hidden,
        own_host=own_host,
    )


def _is_root(target: bytes) -> bool:
    return target[:2] in (b"/", b"/?")
