"""What the kernel knows of a TCP connection whose descriptor belongs to libzmq.

libzmq can neither close one peer of a ROUTER socket nor tell how much of a message has arrived. The kernel does both,
given the descriptor's number. That number may name another socket at any moment, since libzmq closes descriptors in its
own thread; so every call compares the socket's cookie (SO_COOKIE, unique per socket) first.
"""

from __future__ import annotations

import _socket
import os
import socket
import struct

__all__ = ["Undelivered", "cookie_of", "received_bytes", "shut_down"]

_SO_COOKIE = 57
_COOKIE = struct.Struct("=Q")
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128
"""Offset of ``tcpi_bytes_received`` in ``struct tcp_info`` of <linux/tcp.h>."""


class Undelivered:
    """Bytes of a connection that the kernel has received and libzmq has not delivered as messages.

    Args:
        fd: libzmq's descriptor of the connection.
        cookie: of its socket.

    Attributes:
        size: the bytes, as of the last `measure`; about, since a message may be delivered between two measurements.
    """

    __slots__ = ("_cookie", "_fd", "_seen", "delivered", "size")

    def __init__(self, fd: int, cookie: int) -> None:
        self._fd = fd
        self._cookie = cookie
        self._seen = received_bytes(fd, cookie)
        self.delivered = False
        """Whether a message was delivered since the last measurement; whoever receives sets it."""
        self.size = 0

    def measure(self) -> bool:
        """Ask the kernel again; whether the size has changed."""
        received = received_bytes(self._fd, self._cookie)
        if self.delivered:
            self.delivered = False
            self._seen = received
        before, self.size = self.size, max(0, received - self._seen)
        return self.size != before


def cookie_of(fd: int) -> int:
    """The cookie of the socket that has this number now; 0 when there is none."""
    sock = _borrow(fd)
    if sock is None:
        return 0
    try:
        return _cookie(sock)
    finally:
        sock.detach()


def received_bytes(fd: int, cookie: int) -> int:
    """Bytes that a connection has received in all, whether libzmq has read them or not; 0 when it is not known."""
    sock = _borrow(fd)
    if sock is None:
        return 0
    try:
        if _cookie(sock) != cookie:
            return 0
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
    except OSError:
        return 0  # The connection ended in between, or the kernel does not count.
    finally:
        sock.detach()
    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0]) if len(info) >= _RECEIVED_AT + _RECEIVED.size else 0


def shut_down(fd: int, cookie: int) -> bool:
    """End a connection in both directions, so that libzmq closes it; whether it was still there."""
    try:
        # A duplicate cannot become another socket between the comparison and the call, as the number could.
        sock = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, os.dup(fd))
    except OSError:
        return False
    try:
        if _cookie(sock) != cookie:
            return False
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False  # The other end was faster.
    finally:
        sock.close()
    return True


def _borrow(fd: int) -> _socket.socket | None:
    """A socket object round a descriptor of libzmq, to be detached. Its family does not matter for options."""
    try:
        return _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    except OSError:
        return None


def _cookie(sock: _socket.socket) -> int:
    try:
        return int(_COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size))[0])
    except (OSError, struct.error):
        return 0
