"""Probes of a job's server: a connection, or one small HTTP request. They block only their own greenlet."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from gevent.socket import wait_read, wait_write

__all__ = ["Address", "connection_to", "connects", "http_status", "reachable"]

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)[ \r\n]")
_LONGEST_LINE = 4096
_CREDENTIALS = struct.Struct("3i")


class Address(NamedTuple):
    """The address of a server on this machine: a port of a host, or the path of a unix socket.

    Attributes:
        owner: uid of the job's user, whose socket it must be; None for any user's.
    """

    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None
    owner: int | None = None

    @classmethod
    def of(cls, endpoint: Mapping[str, Any]) -> Address:
        """Return the address that a job record has."""
        return cls(endpoint.get("host", "127.0.0.1"), endpoint.get("port", 0), endpoint.get("socket"))

    def endpoint(self) -> dict[str, str | int]:
        """Return the address in a job record's form: ``{"port"}``, with ``"host"`` unless that is 127.0.0.1, or
        ``{"socket"}``.
        """
        if self.path is not None:
            return {"socket": self.path}
        return {"port": self.port} if self.host == "127.0.0.1" else {"port": self.port, "host": self.host}

    def __str__(self) -> str:
        if self.path is not None:
            return f"socket {self.path}"
        return f"port {self.port}" if self.host == "127.0.0.1" else f"{self.host} port {self.port}"


def _is_of(connection: socket.socket, owner: int | None) -> bool:
    """Return whether the process that listens at the other end of a unix socket is of this user; None for any.

    A path may lead elsewhere than it seems, for example to a socket that only root may use (SO_PEERCRED in unix(7)).
    """
    if owner is None:
        return True
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(peer)[1] == owner)


def connects(address: Address, timeout: float) -> bool:
    """Return whether something accepts a connection there within `timeout` seconds."""
    connection = connection_to(address, timeout)
    if connection is None:
        return False
    connection.close()
    return True


def reachable(port: int, timeout: float) -> Address | None:
    """Return the loopback address, IPv4 before IPv6, at which something accepts a connection on this port."""
    for host in ("127.0.0.1", "::1"):
        address = Address(host, port)
        if connects(address, timeout):
            return address
    return None


def http_status(address: Address, path: str, timeout: float) -> int | None:
    """Return the status of the response to a GET, or None without an HTTP response within `timeout` seconds."""
    connection = connection_to(address, timeout)
    if connection is None:
        return None
    name = "localhost" if address.path is not None else f"[{address.host}]" if ":" in address.host else address.host
    host = name if address.path is not None else f"{name}:{address.port}"
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: prouter-agent\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    try:
        connection.sendall(request.encode("ascii"))
        head = b""
        while b"\n" not in head and len(head) < _LONGEST_LINE:
            wait_read(connection.fileno(), timeout=timeout, timeout_exc=TimeoutError("no answer"))
            data = connection.recv(_LONGEST_LINE)
            if not data:
                return None
            head += data
    except OSError:
        return None  # Reset, or no response in time: not ready.
    finally:
        connection.close()
    match = _STATUS_LINE.match(head)
    return int(match[1]) if match else None


def connection_to(address: Address, timeout: float) -> socket.socket | None:
    """Return a connection, which does not block, or None if nothing accepts one within `timeout` seconds."""
    if address.path is not None:
        connection, target = socket.socket(socket.AF_UNIX), address.path
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        connection, target = socket.socket(family), (address.host, address.port)  # type: ignore[assignment]
    connection.setblocking(False)
    try:
        result = connection.connect_ex(target)
        if result == errno.EINPROGRESS:
            wait_write(connection.fileno(), timeout=timeout, timeout_exc=TimeoutError("no connection"))
            result = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result == 0 and address.path is not None and not _is_of(connection, address.owner):
            result = errno.EACCES
    except OSError:
        result = errno.ETIMEDOUT
    except BaseException:
        connection.close()  # its greenlet is ended
        raise
    if result != 0:
        connection.close()
        return None
    return connection
