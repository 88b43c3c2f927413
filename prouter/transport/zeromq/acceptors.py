"""A listening TCP socket that nobody reaches."""

from __future__ import annotations

import ctypes
import socket
import struct

__all__ = ["unreachable_listener"]

_SO_ATTACH_FILTER = 26
_RETURN_CONSTANT = 0x06
"""BPF_RET | BPF_K: the packet is cut to so many bytes, with 0 dropped."""


def unreachable_listener() -> socket.socket:
    """A listening socket that drops every packet: accepting from it never succeeds."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=1)
    sock.setblocking(False)
    program = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN_CONSTANT, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
    return sock
