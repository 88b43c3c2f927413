"""Addresses of a job: the target it gets for a request, the redirects to its root or host name, its `Site`."""

from __future__ import annotations

import re

from prouter.web.proxy.addresses.forwarded import Forwarded, Public
from prouter.web.proxy.addresses.mapping import Site, below, local_host, self_names
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.routes import JobRoute

__all__ = ["beside_its_root", "own_origin", "redirect_for", "site", "target_of_job"]

_PORT = re.compile(rb":[0-9]+\Z")


def target_of_job(route: JobRoute, target: bytes, *, own_host: bool) -> bytes:
    """Return the target as the job knows it.

    On its own host name a job has its root at ``/``. A job with path mode ``keep`` serves below its prefix there, too;
    one with ``strip`` may still write its prefix into links.

    Args:
        target: raw, without the job's prefix unless `own_host`.
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
    """Whether the request asks for the job's root without the slash, from where a page's relative links would break."""
    if head.method not in (b"GET", b"HEAD") or head.upgrade:
        return False
    if own_host:
        return route.record.path_mode == "keep" and _is_root(target)
    return route.record.path_mode != "keep" and target[:1] in (b"", b"?")


def redirect_for(
    route: JobRoute, forwarded: Forwarded, target: bytes, *, prefix: bytes, own_host: bool, only_domain: bytes
) -> bytes:
    """Return where the client has to ask instead; empty if the request can be served where it was asked.

    Args:
        target: raw, without the job's prefix unless `own_host`.
        prefix: the job's, as the client used it; its public one under its own host name.
        own_host: whether the client used the job's own host name.
        only_domain: domain of the jobs' own host names if jobs are served nowhere else, else empty.
    """
    head = forwarded.head
    if only_domain and not own_host and not head.upgrade:  # WebSocket clients follow no redirects
        path = route.prefix + target if route.record.path_mode == "keep" else target
        origin = own_origin(forwarded.public, route.record.uid, only_domain.decode("ascii"))
        return origin.encode("ascii") + (path if path[:1] == b"/" else b"/" + path)
    if beside_its_root(route, head, target, own_host=own_host):
        return forwarded.public.prefix + prefix + b"/" + target.lstrip(b"/")
    return b""


def own_origin(public: Public, job: str, domain: str) -> str:
    """Return the origin of a job's own host name, with the scheme and the port of `public`."""
    port = _PORT.search(public.host)
    suffix = port[0].decode("ascii") if port else ""
    return f"{public.proto.decode('ascii')}://{job}.{domain.strip('.')}{suffix}"


def site(route: JobRoute, public: Public, *, prefix: bytes, own_host: bool) -> Site:
    """Return the job's addresses for one request.

    Args:
        public: the router's address as the client sees it.
        prefix: the job's, as the client used it; its public one under its own host name.
        own_host: whether the client used the job's own host name.
    """
    record, endpoint = route.record, route.record.endpoint or {}
    hidden = prefix if record.path_mode != "keep" else b""
    port = endpoint.get("port")
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
