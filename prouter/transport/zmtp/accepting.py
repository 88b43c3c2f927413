"""Base of the listeners whose connections speak ZMTP on the process's own event loop."""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod

from prouter.transport.zmtp.wire import Wire

__all__ = ["BACKLOG", "OwnListener", "listen_tcp"]

log = logging.getLogger("prouter.transport")

BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted."""
_AT_ONCE = 100
"""Connections accepted before the event loop serves others."""


class OwnListener(ABC):
    """A listening socket whose connections are wires; see `prouter.transport.connection.Listener`.

    Args:
        listening: a socket that listens and does not block.
        endpoint: ``tcp://HOST:PORT`` or ``ipc://PATH``.
    """

    more = False

    def __init__(self, listening: socket.socket, endpoint: str) -> None:
        self._socket = listening
        self.endpoint = endpoint
        self.fd = listening.fileno()

    def accept_sockets(self) -> list[socket.socket]:
        """Accept sockets that have connected, not too many at once. They cost next to nothing until `wire` takes them.

        Raises:
            OSError: the system lacks the descriptors or memory to accept.
        """
        accepted: list[socket.socket] = []
        for _ in range(_AT_ONCE):
            try:
                accepted.append(self._socket.accept()[0])
            except BlockingIOError:
                break
            except ConnectionError:
                continue  # It was closed while it waited to be accepted.
            except OSError:
                if accepted:
                    break  # What was accepted is told first; the next call fails again.
                raise
        return accepted

    def wire(self, sock: socket.socket) -> Wire | None:
        """Begin to speak with a socket that was accepted; None if it is closed already."""
        try:
            return self._wire(sock)
        except OSError as error:
            log.debug("event=peer_disconnected error=%r", str(error))
            sock.close()
            return None

    @abstractmethod
    def _wire(self, sock: socket.socket) -> Wire:
        """Make a connection of a socket.

        Raises:
            OSError: it is closed already.
        """

    def accept(self) -> list[Wire]:
        """Accept connections, not too many at once.

        Raises:
            OSError: the system lacks the descriptors or memory to accept.
        """
        return [wire for wire in map(self.wire, self.accept_sockets()) if wire is not None]

    def arrived(self) -> list[Wire]:
        """Return nothing: each connection has a descriptor of its own."""
        return []

    def tick(self, now: float) -> None:  # noqa: B027 - the same for all
        """Do nothing: there is nothing to look after."""

    def close(self, linger: float = 0) -> None:
        """Accept nobody any more. Idempotent."""
        self._socket.close()


def listen_tcp(interface: str, port: int) -> socket.socket:
    """Listen on an interface's address; IPv6 wildcards accept IPv4, too.

    Args:
        interface: an address, or a name of one.
        port: 0 for any that is free.

    Raises:
        OSError: it cannot be bound.
    """
    found = socket.getaddrinfo(interface, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, address = found[0][0], found[0][4]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
