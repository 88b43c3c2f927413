"""Marks by which a router recognizes requests that have come through it before.

Each router adds its pseudonym to the field X-PRouter-Via of a request. It does not use Via (RFC 9110 section 7.6.3),
because servers compress nothing for requests with Via (docs/decisions/proxy-worker.md).
"""

from __future__ import annotations

import hashlib
import os
import socket

from prouter.web.proxy.addresses.fields import HOPS

__all__ = ["came_through", "pseudonym"]


def pseudonym(place: str = "") -> bytes:
    """Return a name for the router that reveals nothing about it.

    Args:
        place: a text that the router's workers share and no other router on this machine has; by default the name is
            random.
    """
    seed = f"{socket.gethostname()}\0{place}".encode() if place else os.urandom(16)
    return hashlib.sha256(b"prouter hop\0" + seed).hexdigest()[:20].encode("ascii")


def came_through(headers: list[tuple[bytes, bytes]], mark: bytes) -> bool:
    """Return whether the router with this mark is among the hops of a request."""
    return any(name.lower() == HOPS and mark in [hop.strip() for hop in value.split(b",")] for name, value in headers)
