"""Listening TCP socket whose connections speak ZMTP on the process's own event loop, with or without CURVE."""

from __future__ import annotations

import logging
import socket
import time
from functools import partial

from prouter.addresses import tcp_endpoint
from prouter.key_pairs import KeyPair
from prouter.process.log_limit import LogLimit
from prouter.transport.zmtp.accepting import OwnListener, listen_tcp
from prouter.transport.zmtp.curve import CurveServer
from prouter.transport.zmtp.server_keys import ServerCurve, ServerKeys
from prouter.transport.zmtp.wire import Wire

__all__ = ["TcpListener"]

log = logging.getLogger("prouter.transport")


class TcpListener(OwnListener):
    """Accepts DEALERs over tcp.

    Args:
        interface: address to listen on.
        port: 0 for any that is free.
        curve: encryption; None for none.
        limit: bytes that are accepted before a peer is authenticated.

    Raises:
        OSError: the address cannot be bound.
        ValueError: a key is malformed.
    """

    def __init__(
        self, interface: str, port: int, *, curve: ServerCurve | None = None, limit: int | None = None
    ) -> None:
        self._curve = curve
        self._keys = ServerKeys(curve.pair) if curve is not None else None
        self._limit = limit
        self._logs = LogLimit()
        listening = listen_tcp(interface, port)
        host, number = listening.getsockname()[:2]
        super().__init__(listening, tcp_endpoint(host, number))

    def change_key(self, pair: KeyPair) -> None:
        """Use another server key for new connections; existing ones go on, and none is refused meanwhile."""
        if self._curve is not None and self._curve.pair != pair:
            self._curve = ServerCurve(pair, self._curve.accepts)
            self._keys = ServerKeys(pair)

    def _wire(self, sock: socket.socket) -> Wire:
        if self._keys is None:
            return Wire(sock, b"ROUTER", b"DEALER", limit=self._limit)
        accepts = partial(self._accepts, sock)
        return Wire(sock, b"ROUTER", b"DEALER", protocol=CurveServer(self._keys, accepts, b"DEALER", limit=self._limit))

    def _accepts(self, sock: socket.socket, key: str) -> bool:
        """Decide whether a client's key is accepted; an unexpected error in the decision refuses it."""
        assert self._curve is not None
        try:
            accepted = self._curve.accepts(key)
        except Exception:
            log.exception("event=key_not_checked key=%s", key)
            return False
        if not accepted:
            self._refused(key, sock)
        return accepted

    def _refused(self, key: str, sock: socket.socket) -> None:
        if self._logs.allows(time.monotonic()):
            log.warning("event=key_refused key=%s address=%s", key, _address(sock))


def _address(sock: socket.socket) -> str:
    """The other end's address; empty if it has left."""
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return ""
