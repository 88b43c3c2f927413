"""Loopback ports for jobs whose address the agent chooses.

A port is chosen long before the job listens on it, and must not be taken meanwhile. Ports therefore lie outside the
range that the kernel uses for ``bind(0)`` and outgoing connections (ip_local_port_range in ip(7)). Each is reserved by
an abstract unix socket named after it: like ports, these names are one namespace for all programs of the machine
(unix(7)), so that several agents never hand out the same port.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

from prouter.errors import LimitReached

__all__ = ["Port", "again", "reserve", "take"]

_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
_LOWEST = 10240
_SPAN = 16384
_TRIES = 2048


class Port:
    """A TCP port that no other agent of this machine hands out until it is released."""

    def __init__(self, number: int, lock: socket.socket | None) -> None:
        self.number = number
        self._lock = lock

    def release(self) -> None:
        """Release the port. Idempotent."""
        if self._lock is not None:
            self._lock.close()


def reserve() -> Port:
    """Reserve a port that is free now.

    Raises:
        LimitReached: no free port was found.
    """
    low, high = _choice()
    size = high - low
    at = random.randrange(size)  # noqa: S311 - not a secret: spreads agents over the range
    for step in range(min(size, _TRIES)):
        port = take(low + (at + step) % size)
        if port is not None:
            if _free(port.number):
                return port
            port.release()
    raise LimitReached(f"no free port between {low} and {high - 1} on the agent's machine", retry_after=5.0)


def take(number: int) -> Port | None:
    """Reserve this port, even if something listens on it; None if it is reserved already."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0prouter-port-{number}")
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return Port(number, lock)


def again(number: int) -> Port:
    """Return the port of a job that an earlier agent started, reserved unless another agent was faster."""
    return take(number) or Port(number, None)


def _choice() -> tuple[int, int]:
    """Return the half-open range of ports to hand out: the larger part outside the kernel's own range."""
    try:
        low, high = (int(word) for word in Path(_RANGE_FILE).read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    below, above = (max(_LOWEST, low - _SPAN), low), (high + 1, 65536)
    best = below if below[1] - below[0] >= above[1] - above[0] else above
    return best if best[1] > best[0] else (_LOWEST, 65536)


def _free(number: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, number))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            # Without IPv6 nothing can be in the way there.
    return True
