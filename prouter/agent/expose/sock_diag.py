"""Listening TCP sockets from the kernel by netlink, which does not look at other sockets for them.

The files ``/proc/net/tcp`` and ``tcp6`` list them, too, but to reach their end the kernel goes through its whole table
of connections, which takes many milliseconds on a large machine. Sources: sock_diag(7), netlink(7),
linux/inet_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

__all__ = ["listening"]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 1 << 10
"""The state TCP_LISTEN as a bit of idiag_states."""
_TIMEOUT = 2.0
_DATAGRAM = 1 << 17
"""Bytes to receive at once; the kernel sends dumps in datagrams of at most 32 KiB."""

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_REQUEST = struct.Struct("=BBBBI48x")
"""struct inet_diag_req_v2: family, protocol, extensions, padding, states; the rest, zeros, selects no single socket."""
_ANSWER = struct.Struct("=4x2s2x16s16x12x16xI")
"""struct inet_diag_msg: only the source's port and address, and the inode."""
_ERROR = struct.Struct("=i")


def listening(family: socket.AddressFamily) -> Iterator[tuple[str, int, int]]:
    """Return address, port and inode of every listening socket of this family in the caller's network namespace.

    Raises:
        OSError: netlink is not available (no such module, a filter of system calls).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
        length = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + request)
        while True:
            for kind, body in _messages(netlink.recv(_DATAGRAM)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -_ERROR.unpack_from(body)[0]
                    raise OSError(number, os.strerror(number))
                port, address, inode = _ANSWER.unpack_from(body)
                host = socket.inet_ntop(family, address[: 4 if family is socket.AF_INET else 16])
                yield host, int.from_bytes(port, "big"), inode


def _messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield type and body of each message; messages begin at multiples of four bytes."""
    rest = memoryview(datagram)
    while len(rest) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(rest)
        if not _HEADER.size <= length <= len(rest):
            raise OSError("a netlink message is incomplete")
        yield kind, rest[_HEADER.size : length]
        rest = rest[(length + 3) & ~3 :]
