"""Connections of a worker to servers that users name: looked up once, then connected to the addresses that were found.

Between the two, `prouter.targets.Targets` decides which of these addresses may be used.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence

import gevent

from prouter.targets import Found

__all__ = ["connect_to", "look_up"]


def look_up(host: str, port: int, timeout: float) -> list[Found]:
    """Return the TCP addresses of a host. Blocks the greenlet for at most `timeout` seconds.

    Raises:
        OSError: it has none, or they are not found in time.
    """
    late = TimeoutError(errno.ETIMEDOUT, f"the name cannot be looked up within {timeout:g} s")
    with gevent.Timeout(timeout, late):
        try:
            return [(entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except UnicodeError as error:
            raise OSError(errno.EINVAL, f"the name cannot be looked up: {error}") from None


def connect_to(addresses: Sequence[Found], timeout: float) -> socket.socket:
    """Connect to the first of these addresses that accepts. Blocks the greenlet for at most `timeout` seconds.

    Raises:
        OSError: none does.
    """
    deadline = time.monotonic() + timeout
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(address)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure
