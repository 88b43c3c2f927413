"""Find out why a port did not become a connection: a plain TCP connection that reads what the other end sends.

libzmq reports that an attempt failed, not why. This probe says it in words, with the first bytes of what is no ZeroMQ
socket. It runs after a failure only, so a successful attempt costs nothing more.
"""

from __future__ import annotations

import os
from typing import Any

from gevent import socket

from prouter.errors import ProtocolError
from prouter.transport.zmtp.codec import Zmtp
from prouter.transport.zmtp.handshakes import opening

__all__ = ["CLOSED", "NO_ANSWER", "NO_ENCRYPTION", "PORTS", "SILENT", "WANTS_ENCRYPTION", "Address", "probe"]

PORTS = "agents connect to the router's server.port (8889), not to control.port (8888)"
NO_ANSWER = "no answer"
SILENT = f"what listens there says nothing; {PORTS}"
WANTS_ENCRYPTION = (
    "the router wants encryption; join it with 'prouter agent --join URL' (on the router's machine, 'prouter invite' "
    "prints the URL) or set client.router_key"
)
NO_ENCRYPTION = (
    "the router does not encrypt, and this agent expects it to, since it knows a key of it; set server.curve on the "
    "router, or remove client.router_key here"
)
CLOSED = f"the other end closes the connection without a word; {PORTS}"

_TIMEOUT = 1.0
"""Seconds for connecting, and for each piece that arrives."""
_READ = 4096
_VERSION_END = 11
"""Bytes of a greeting up to its version. What follows is the mechanism (ZMTP 3.0)."""
_MECHANISM = slice(12, 32)

Address = tuple[int, Any]
"""Family, and what `connect` takes."""


def probe(address: Address) -> str:
    """Return in words what is wrong with a ROUTER's address; empty if nothing is found. Blocks the greenlet."""
    family, place = address
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT)
            try:
                sock.connect(place)
            except TimeoutError:
                return NO_ANSWER
            return _listen_to(sock)
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _listen_to(sock: socket.socket) -> str:
    """Return what is wrong with what a connected peer sends."""
    protocol = Zmtp(b"ROUTER")
    greeting = opening(b"DEALER")
    try:
        # A peer that wants encryption closes when it reads our mechanism, so its own is read first.
        sock.sendall(greeting[:_VERSION_END])
        data = b""
        while len(data) < _MECHANISM.stop and data[:1] in (b"", greeting[:1]):
            data += _received(sock)
        if data[_MECHANISM].rstrip(b"\0") == b"CURVE":
            return WANTS_ENCRYPTION
        sock.sendall(greeting[_VERSION_END:])
        protocol.receive(data)
        while not protocol.ready:
            protocol.receive(_received(sock))
    except TimeoutError:
        return SILENT
    except ConnectionError:
        return CLOSED
    except ProtocolError as error:
        return f"this is no port for agents: {error.detail}; {PORTS}"
    return ""


def _received(sock: socket.socket) -> bytes:
    """Return what arrives next.

    Raises:
        ConnectionError: the peer has closed.
    """
    data = bytes(sock.recv(_READ))
    if not data:
        raise ConnectionResetError("closed by the other end")
    return data
