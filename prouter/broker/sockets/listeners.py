"""Where peers connect: a listening TCP or unix socket, and who may listen where."""

from __future__ import annotations

import socket
from pathlib import Path

__all__ = ["Door", "open_local_door", "open_tcp_door"]

_BACKLOG = 4096


class Door:
    """A listening socket.

    Attributes:
        fd: readable when somebody has connected.
        endpoint: ``tcp://HOST:PORT``, with the port it got; or ``ipc://PATH``.
    """

    def __init__(self, sock: socket.socket, endpoint: str) -> None:
        self._socket = sock
        self.fd = sock.fileno()
        self.endpoint = endpoint

    def take(self) -> socket.socket | None:
        """The next connection that has been made.

        Raises:
            OSError: it cannot be taken.
        """
        try:
            return self._socket.accept()[0]
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Let nobody in any more. Idempotent."""
        self._socket.close()
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def open_local_door(endpoint: str) -> Door:
    """Listen at ``ipc://PATH``. Whoever holds the directory's lock may: what is there was left by a killed broker.

    Raises:
        OSError: it cannot be bound.
    """
    path = Path(endpoint.removeprefix("ipc://"))
    path.unlink(missing_ok=True)
    return Door(_listen(socket.AF_UNIX, str(path)), endpoint)


def open_tcp_door(interface: str, port: int) -> Door:
    """Listen on an interface's address; port 0 for any that is free.

    Raises:
        OSError: it cannot be bound.
    """
    found = socket.getaddrinfo(interface, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, address = found[0][0], found[0][4]
    sock = _listen(family, address)
    host, number = sock.getsockname()[:2]
    return Door(sock, f"tcp://[{host}]:{number}" if ":" in host else f"tcp://{host}:{number}")


def _listen(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
