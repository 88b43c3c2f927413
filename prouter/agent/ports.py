"""Loopback ports and unix socket paths for jobs whose address the agent chooses.

A port is handed out long before the job listens on it, so it must not be taken meanwhile. Ports are therefore picked
outside the range the kernel uses for ``bind(0)`` and outgoing connections (ip_local_port_range in ip(7)), and each is
reserved by an abstract unix socket named after it: like ports, these names are one namespace for all programs of the
machine (unix(7)), so that several agents on it never hand out the same port.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import stat
import tempfile
from pathlib import Path

from prouter.errors import LimitReached, StartFailed

__all__ = ["LONGEST_SOCKET", "Port", "SocketPlaces", "again", "reserve", "take"]

_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
_LOWEST = 10240
_SPAN = 16384
_TRIES = 2048
LONGEST_SOCKET = 100
"""Bytes; the kernel takes 107, some programs append to the name while they bind."""


class Port:
    """A TCP port that no other agent of this machine hands out until it is released."""

    def __init__(self, number: int, lock: socket.socket | None) -> None:
        self.number = number
        self._lock = lock

    def release(self) -> None:
        """Give the port back; more than once is fine."""
        if self._lock is not None:
            self._lock.close()


def reserve() -> Port:
    """A port that is free now, reserved.

    Raises:
        LimitReached: no free port was found.
    """
    low, high = _choice()
    size = high - low
    at = random.randrange(size)  # noqa: S311 - no secret: spreads agents over the range
    for step in range(min(size, _TRIES)):
        port = take(low + (at + step) % size)
        if port is not None:
            if _free(port.number):
                return port
            port.release()
    raise LimitReached(f"no free port between {low} and {high - 1} on the agent's machine", retry_after=5.0)


def take(number: int) -> Port | None:
    """Reserve this very port, whoever listens on it; None if it is reserved already."""
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
    """The port of a job that an earlier agent started, reserved unless another agent has been faster."""
    return take(number) or Port(number, None)


def _choice() -> tuple[int, int]:
    """Half-open range of ports to hand out: the larger part outside the kernel's own range."""
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
            # No IPv6 here: nothing that could be in the way.
    return True


class SocketPlaces:
    """Short paths for unix sockets: in the job's sandbox where that is short enough, else in a private directory, which
    also holds short links to directories for sockets.

    Args:
        root: the agent's jobs root; agents with different roots get different private directories.
    """

    def __init__(self, root: Path) -> None:
        name = f"prouter-{os.geteuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
        bases = (os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), tempfile.gettempdir(), "/tmp")  # noqa: S108
        self._private = next(Path(base) / name for base in bases if _fits(Path(base) / name / ("x" * 16)))

    def path(self, sandbox: Path) -> Path:
        """Where the job's server is to listen.

        Raises:
            StartFailed: there is no place for the socket.
        """
        near = sandbox / ".pagent.sock"
        if _fits(near):
            return near
        self._make_private(sandbox.name)
        return self._private / sandbox.name[:16]

    def link(self, directory: Path, uid: str) -> Path:
        """A short link to a job's directory.

        Raises:
            StartFailed, OSError: it cannot be made.
        """
        self._make_private(uid)
        link = self._private / f"t{uid[:15]}"
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
        return link

    def _make_private(self, uid: str) -> None:
        try:
            self._private.mkdir(mode=0o700, exist_ok=True)
            found = self._private.lstat()
        except OSError as error:
            raise StartFailed(f"no place for the job's unix socket: {error}", job=uid) from error
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not ours:
            raise StartFailed(f"'{self._private}' is not a private directory of the agent's user", job=uid)

    def sweep(self, kept: set[Path]) -> None:
        """Remove the sockets and links of jobs that are gone, and the private directory if nothing is left in it."""
        if not self._private.is_dir() or self._private.is_symlink() or self._private.stat().st_uid != os.geteuid():
            return
        for entry in self._private.iterdir():
            if entry not in kept:
                entry.unlink(missing_ok=True)
        if not kept:
            self._private.rmdir()


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_SOCKET
