"""Listening TCP sockets: one that libzmq accepts from, and one that nobody reaches."""

from __future__ import annotations

import ctypes
import socket
import struct

__all__ = ["listen", "unreachable_listener"]

_BACKLOG = 4096
_SO_ATTACH_FILTER = 26
_RETURN_CONSTANT = 0x06
"""BPF_RET | BPF_K: the packet is cut to so many bytes, with 0 dropped."""


def listen(interface: str, port: int) -> socket.socket:
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
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def unreachable_listener() -> socket.socket:
    """A listening socket that drops every packet: accepting from it never succeeds."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=1)
    sock.setblocking(False)
    program = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN_CONSTANT, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
    return sock
