"""Listening TCP sockets from the kernel by netlink, which does not look at other sockets for them.

`Lookup` asks for a single socket, by the same search by which the kernel gives a new connection to a listener
(inet_diag_find_one_icsk in net/ipv4/inet_diag.c). That takes 6 us, however many sockets there are.

The files ``/proc/net/tcp`` and ``tcp6`` list them, too, but to reach their end the kernel goes through its whole table
of connections, which takes many milliseconds on a large machine. Sources: sock_diag(7), netlink(7),
linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["Lookup", "listening"]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_LOOPBACK = "lo"
_NO_COOKIE = 0xFFFFFFFF
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ANY_STATE = 0xFFF
_LISTEN = 1 << 10
"""The state TCP_LISTEN as a bit of idiag_states."""
_TIMEOUT = 2.0
_SMALL = 1 << 12
_DATAGRAM = 1 << 17
"""Bytes to receive at once; the kernel sends dumps in datagrams of at most 32 KiB."""

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_REQUEST = struct.Struct("=BBBBI48x")
"""struct inet_diag_req_v2: family, protocol, extensions, padding, states; the rest, zeros, selects no single socket."""
_UP_TO_PORTS = 8
_PORTS, _END = struct.Struct("!HH"), struct.Struct("=III")
"""struct inet_diag_sockid: ports of source and destination, then their addresses, then interface and cookie."""
_ANSWER = struct.Struct("=4x2s2x16s16x12x12xII")
"""struct inet_diag_msg: only the source's port and address, the user's id, and the inode."""
_ERROR = struct.Struct("=i")


def listening(family: socket.AddressFamily) -> Iterator[tuple[str, int, int, int]]:
    """Return address, port, inode and user id of every listening socket of this family in this network namespace.

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
                port, address, uid, inode = _ANSWER.unpack_from(body)
                host = socket.inet_ntop(family, address[: 4 if family is socket.AF_INET else 16])
                yield host, int.from_bytes(port, "big"), inode, uid


class Lookup:
    """Questions about single TCP sockets.

    Raises:
        OSError: netlink is not available.
    """

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._netlink.setblocking(False)
        size = _HEADER.size + _REQUEST.size
        header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
        self._begin = [
            header + _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE)[:_UP_TO_PORTS]
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        # Connections of this machine to itself come through this interface, whatever their address.
        self._end = _END.pack(socket.if_nametoindex(_LOOPBACK), _NO_COOKIE, _NO_COOKIE)
        self._number = 0

    def listener(self, host: str, port: int) -> int:
        """Return the inode of the socket that gets new connections to this address; 0 if none does.

        Where several sockets share the address (SO_REUSEPORT), each call returns one of them by chance.

        Raises:
            OSError: the kernel did not answer.
        """
        self._number += 1
        anybody = "::" if ":" in host else "0.0.0.0"  # noqa: S104 - an address that no connection has
        return self._ask((host, port), (anybody, 1 + self._number % 65535))

    def accepted(self, server: tuple[str, int], client: tuple[str, int]) -> int:
        """Return the inode of the server's end of a connection; 0 as long as it is not accepted, or if there is none.

        Raises:
            OSError: the kernel did not answer.
        """
        return self._ask(server, client)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._netlink.close()

    def _ask(self, source: tuple[str, int], destination: tuple[str, int]) -> int:
        ports = _PORTS.pack(source[1], destination[1])
        begin = self._begin[":" in source[0]]
        self._netlink.send(begin + ports + _octets(source[0]) + _octets(destination[0]) + self._end)
        # The kernel has answered when send(2) returns, so the answer is not waited for.
        return _inode(self._netlink.recv(_SMALL))


@lru_cache(1024)
def _octets(host: str) -> bytes:
    """Return an address in the 16 octets of inet_diag_sockid."""
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host).ljust(16, b"\0")


def _inode(datagram: bytes) -> int:
    """Return the inode in an answer about one socket; 0 if there is no such socket.

    Raises:
        OSError: the answer is another error.
    """
    kind = _HEADER.unpack_from(datagram)[1]
    if kind == _SOCK_DIAG_BY_FAMILY:
        return int(_ANSWER.unpack_from(datagram, _HEADER.size)[3])
    number = -_ERROR.unpack_from(datagram, _HEADER.size)[0] if kind == _NLMSG_ERROR else errno.EPROTO
    if number == errno.ENOENT:
        return 0
    raise OSError(number, os.strerror(number))


def _messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield type and body of each message; messages begin at multiples of four bytes."""
    rest = memoryview(datagram)
    while len(rest) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(rest)
        if not _HEADER.size <= length <= len(rest):
            raise OSError("a netlink message is incomplete")
        yield kind, rest[_HEADER.size : length]
        rest = rest[(length + 3) & ~3 :]
