"""Probes of a job's server: a connection, or one small HTTP request. They block only their own greenlet."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

from gevent.socket import wait_read

from prouter.errors import PRouterError
from prouter.runners.sockets import Address

__all__ = ["Connect", "connects", "http_status"]

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)[ \r\n]")
_LONGEST_LINE = 4096

Connect = Callable[[Address, float], socket.socket]
"""Connects to a job's server within a number of seconds, and raises what `Runner.connect` does."""


def connects(connect: Connect, address: Address, timeout: float) -> bool:
    """Return whether something accepts a connection there within `timeout` seconds."""
    connection = _connection(connect, address, timeout)
    if connection is None:
        return False
    connection.close()
    return True


def http_status(connect: Connect, address: Address, path: str, timeout: float) -> int | None:
    """Return the status of the response to a GET, or None without an HTTP response within `timeout` seconds."""
    connection = _connection(connect, address, timeout)
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


def _connection(connect: Connect, address: Address, timeout: float) -> socket.socket | None:
    try:
        return connect(address, timeout)
    except (OSError, PRouterError):
        return None  # Nothing listens there yet, or another program does.
