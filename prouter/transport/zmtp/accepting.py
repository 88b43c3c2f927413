"""What listeners on the own loop have in common: accepting connections, not too many at once."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from prouter.transport.zmtp.wire import Wire

__all__ = ["BACKLOG", "accept_wires", "listen_tcp"]

log = logging.getLogger("prouter.transport")

BACKLOG = 4096
"""Connections that the kernel keeps until they are accepted."""
_AT_ONCE = 100
"""Connections accepted before others get their turn."""


def accept_wires(listening: socket.socket, wire: Callable[[socket.socket], Wire]) -> list[Wire]:
    """Connections that were made since, not too many at once.

    Args:
        listening: a socket that does not block.
        wire: makes a connection of a socket.

    Raises:
        OSError: the system lacks the descriptors or memory to accept.
    """
    accepted: list[Wire] = []
    for _ in range(_AT_ONCE):
        try:
            sock = listening.accept()[0]
        except BlockingIOError:
            break
        except ConnectionError:
            continue  # It was closed while it waited to be accepted.
        except OSError:
            if accepted:
                break  # What was accepted is told first; the next call fails again.
            raise
        try:
            accepted.append(wire(sock))
        except OSError as error:
            log.debug("event=peer_disconnected error=%r", str(error))
            sock.close()
    return accepted


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
