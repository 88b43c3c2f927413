"""The agent's last word to its routers, sent by its keeper when it died and does not come back.

A router cannot tell a dead agent's closed connection from one that a network broke, so it waits for the agent to come
back. The keeper knows. The agent leaves it the message ready made; this module only delivers it, over a ZeroMQ
connection of its own, with nothing but the standard library.

Source: ZMTP 3.0 (rfc.zeromq.org/spec/23), mechanism NULL.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence

__all__ = ["Delivery", "deliver"]

_TIMEOUT = 2.0
"""Seconds for connecting, and for the router to take the message."""
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">I")
_LONG_LENGTH = struct.Struct(">Q")


class Delivery:
    """The delivery to several routers at once, each in a thread of its own.

    Args:
        routers: ``host:port`` of each.
        parts: of the message.
        failed: told in words about each router that did not take it.
    """

    def __init__(self, routers: Sequence[str], parts: Sequence[bytes], failed: Callable[[str], None]) -> None:
        self._parts = parts
        self._failed = failed
        self._threads = [threading.Thread(target=self._run, args=(router,), daemon=True) for router in routers]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until every router has it, or had time to take it."""
        for thread in self._threads:
            thread.join(2 * _TIMEOUT)

    def _run(self, router: str) -> None:
        try:
            deliver(router, self._parts)
        except OSError as error:
            self._failed(f"event=obituary_not_delivered router={router} error={str(error)!r}")


def deliver(router: str, parts: Sequence[bytes]) -> None:
    """Send one message to the ZeroMQ socket at ``host:port``, and wait until it was read.

    Raises:
        OSError: it could not be.
    """
    host, _, port = router.rpartition(":")
    ready = b"\x05READY\x0bSocket-Type" + _LENGTH.pack(6) + b"DEALER"
    last = len(parts) - 1
    message = b"".join(_frame(_MORE if number < last else 0, part) for number, part in enumerate(parts))
    with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT) as connection:
        connection.sendall(_GREETING + _frame(_COMMAND, ready))
        _read_handshake(connection)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        # The other side closes when it has read everything; to close first with something unread would be a reset.
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):
                pass


def _read_handshake(connection: socket.socket) -> None:
    """Take the other side's greeting and its READY: it listens from then on."""
    data = b""
    while len(data) < len(_GREETING) + 2 or len(data) < len(_GREETING) + 2 + data[len(_GREETING) + 1]:
        received = connection.recv(4096)
        if not received:
            raise ConnectionError("closed before the handshake was over")
        data += received


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes((flags | _LONG,)) + _LONG_LENGTH.pack(len(body)) + body
    return bytes((flags, len(body))) + body
