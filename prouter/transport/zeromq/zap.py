"""Decides handshakes: libzmq asks through ZAP (rfc.zeromq.org/spec/27), and the process's own loop answers.

libzmq looks for one handler per context, at a fixed inproc endpoint. Listeners of the context share it; each has a
domain of its own, by which a request says whose client it is about.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from itertools import count

import zmq

from prouter.key_pairs import from_bytes
from prouter.process.log_limit import LogLimit
from prouter.transport.zeromq.context import context
from prouter.transport.zmtp.server_keys import Accepts

__all__ = ["Authenticator", "authenticator"]

log = logging.getLogger("prouter.transport")

_ENDPOINT = "inproc://zeromq.zap.01"
_AT_ONCE = 64
"""Handshakes decided before others get their turn; the clients of the rest wait."""
_VERSION = b"1.0"
_KEY_SIZE = 32


class Authenticator:
    """The ZAP handler of this process's context. Use `authenticator`, not the class.

    Attributes:
        fd: readable when handshakes wait to be decided.
        more: whether some wait, even if `fd` is not readable.
    """

    def __init__(self) -> None:
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(_ENDPOINT)
        self._accepts: dict[bytes, Accepts] = {}
        """By domain."""
        self._open: set[bytes] = set()
        """Domains of listeners without encryption."""
        self._numbers = count(1)
        self.fd = int(self._socket.getsockopt(zmq.FD))
        self.more = False
        self._logs = LogLimit()

    def register(self, accepts: Accepts | None) -> str:
        """Have `accepts` asked about the clients of a listener; the domain that the listener is to use.

        With None, clients need no key and get none: libzmq then refuses the versions of ZMTP before 3 only.
        """
        domain = f"listener-{next(self._numbers)}"
        if accepts is None:
            self._open.add(domain.encode())
        else:
            self._accepts[domain.encode()] = accepts
        return domain

    def forget(self, domain: str) -> None:
        """A listener is closed. The handler stays: libzmq frees its endpoint only some time after it was closed."""
        self._accepts.pop(domain.encode(), None)
        self._open.discard(domain.encode())

    @property
    def closed(self) -> bool:
        """Whether the handler was closed together with its context."""
        return bool(self._socket.closed)

    def answer(self) -> None:
        """Decide handshakes that wait."""
        self.more = False
        for _ in range(_AT_ONCE):
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(self._answer(request), zmq.NOBLOCK)
        self.more = True

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """The reply: user id is the client's public key, which libzmq attaches to each of its messages."""
        route, empty, _version, number, domain, address, _identity, mechanism, *credentials = request
        key = ""
        accepts = self._accepts.get(domain)
        if accepts is not None:
            if mechanism == b"CURVE" and credentials and len(credentials[0]) == _KEY_SIZE:
                key = from_bytes(credentials[0])
            accepted = bool(key) and _asked(accepts, key)
            if not accepted:
                self._refuse(key, address)
        else:
            # Of a listener without encryption; or the listener was closed meanwhile.
            accepted = domain in self._open and mechanism == b"NULL"
        status = (b"200", b"OK") if accepted else (b"400", b"the key is not accepted")
        return [route, empty, _VERSION, number, *status, key.encode() if accepted else b"", b""]

    def _refuse(self, key: str, address: bytes) -> None:
        if self._logs.allows(time.monotonic()):
            log.warning("event=key_refused key=%s address=%s", key or "none", address.decode("ascii", "replace"))


def _asked(accepts: Callable[[str], bool], key: str) -> bool:
    """A mistake in a decision refuses the client; libzmq would wait for an answer otherwise."""
    try:
        return accepts(key)
    except Exception:
        log.exception("event=key_not_checked key=%s", key)
        return False


_authenticators: dict[int, Authenticator] = {}


def authenticator() -> Authenticator:
    """Return the handler of this process, made at the first call."""
    pid = os.getpid()
    found = _authenticators.get(pid)
    if found is None or found.closed:
        found = _authenticators[pid] = Authenticator()
    return found
