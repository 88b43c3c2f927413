"""Marks by which a router knows requests that have come through it before.

Each router a request passes adds its pseudonym to the field X-PRouter-Via. It is not Via (RFC 9110 section 7.6.3),
because servers compress nothing for requests that have one (docs/decisions/proxy-worker.md).
"""

from __future__ import annotations

import hashlib
import os
import socket

from prouter.web.proxy.fields import HOPS

__all__ = ["came_through", "pseudonym"]


def pseudonym(place: str = "") -> bytes:
    """A name for a router that tells nothing about it.

    Args:
        place: what the router's workers have in common and no other router on this machine; by default nothing is, and
            the name is random.
    """
    seed = f"{socket.gethostname()}\0{place}".encode() if place else os.urandom(16)
    return hashlib.sha256(b"prouter hop\0" + seed).hexdigest()[:20].encode("ascii")


def came_through(headers: list[tuple[bytes, bytes]], mark: bytes) -> bool:
    """Whether a request's hops have the router with this mark."""
    return any(name.lower() == HOPS and mark in [hop.strip() for hop in value.split(b",")] for name, value in headers)
