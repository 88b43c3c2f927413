"""The agent's TLS listener for nodes. It serves only nodes that have the secret of a job of this agent."""

from __future__ import annotations

import hmac
import logging
import socket as plain_socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import Timeout
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.ssl import SSLContext

from prouter.keeper.wire import Decoder, encode

__all__ = ["Listener", "reachable_addresses"]

_HANDSHAKE = 10.0
"""Seconds until a connection has to be authenticated."""
_UNAUTHENTICATED = 256
"""Most connections that are not authenticated yet; a further one takes the place of the oldest, so that nobody who only
connects keeps nodes out."""
_BACKLOG = 1024
_HELLO = 1 << 20
"""Most bytes of a first message, which tells how a job has ended."""
_KEEPALIVE = {plain_socket.TCP_KEEPIDLE: 15, plain_socket.TCP_KEEPINTVL: 5, plain_socket.TCP_KEEPCNT: 4}
"""Seconds and count after which a node without power or network counts as lost (tcp(7))."""

_log = logging.getLogger("prouter.runner")


class Listener:
    """The listener.

    Args:
        context: the agent's certificate.
        secret_of: the secret of a job's present start; None if this agent has no such job.
        serve: gets each authenticated connection, its first message, the messages after it, and the decoder; it runs
            in a greenlet of the connection.
    """

    def __init__(
        self,
        context: SSLContext,
        secret_of: Callable[[str], str | None],
        serve: Callable[[Any, dict[str, Any], list[dict[str, Any]], Decoder], None],
    ) -> None:
        self._context = context
        self._secret_of = secret_of
        self._serve = serve
        self._server: StreamServer | None = None
        self._handshakes = Pool()
        self._unauthenticated: dict[Any, None] = {}  # Their greenlets, the oldest first.
        self._served = Pool()

    def open(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises `OSError`."""
        family = plain_socket.AF_INET6 if ":" in host else plain_socket.AF_INET
        listener = plain_socket.socket(family, plain_socket.SOCK_STREAM)
        listener.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._server = StreamServer(listener, self._accept, spawn=self._handshakes)
        self._server.start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
        self._handshakes.kill()
        self._served.kill()

    def _accept(self, connection: Any, peer: Any) -> None:
        if len(self._unauthenticated) >= _UNAUTHENTICATED:
            oldest = next(iter(self._unauthenticated))
            del self._unauthenticated[oldest]
            oldest.kill(ConnectionError("too many wait, and it was the oldest"), block=False)
        this = gevent.getcurrent()
        self._unauthenticated[this] = None
        try:
            with Timeout(_HANDSHAKE, TimeoutError("too slow")):
                served = self._authenticated(connection)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.info("event=node_refused peer=%r error=%r", str(peer[0]), str(error))
            connection.close()
            return
        finally:
            self._unauthenticated.pop(this, None)
        if served is not None:
            # In another pool, because a served connection may last for weeks.
            self._served.spawn(self._run, *served)

    def _run(self, connection: Any, *first: Any) -> None:
        try:
            self._serve(connection, *first)
        except Exception:
            _log.exception("event=node_connection_failed")
            connection.close()

    def _authenticated(self, connection: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]], Decoder] | None:
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(plain_socket.IPPROTO_TCP, option, value)
        connection.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_KEEPALIVE, 1)
        connection.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
        encrypted = self._context.wrap_socket(connection, server_side=True)
        decoder = Decoder()
        messages: list[dict[str, Any]] = []
        size = 0
        while not messages:
            data = encrypted.recv(65536)
            size += len(data)
            if not data or size > _HELLO:
                raise ConnectionError("it has not introduced itself")
            messages = decoder.feed(data)
        hello, *others = messages
        secret = self._secret_of(str(hello["job"]))
        if secret is None or not hmac.compare_digest(secret.encode(), str(hello["secret"]).encode()):
            # Only a job's node has got so far, as a rule: of a job that was removed while the agent was away.
            encrypted.sendall(encode({"refused": "the agent has no such job"}))
            encrypted.close()
            _log.info("event=node_refused job=%r reason='no such job, or another start of it'", str(hello["job"])[:32])
            return None
        encrypted.sendall(encode({"welcome": True, "time": time.time()}))
        return encrypted, hello, others, decoder


def reachable_addresses(controller_hosts: list[str]) -> list[str]:
    """Names and addresses by which nodes may reach this machine, the likeliest first.

    Args:
        controller_hosts: where Slurm's controller is: the address of this machine towards it is in the cluster's
            network.
    """
    found = [_towards(host) for host in controller_hosts]
    found += [plain_socket.getfqdn(), plain_socket.gethostname(), _towards("192.0.2.1")]
    names = [name for name in found if name]
    # Loopback last: it works on clusters of one machine only.
    return sorted(dict.fromkeys(names), key=lambda name: name.startswith(("127.", "::1", "localhost")))


def _towards(host: str) -> str | None:
    """The address of this machine towards another one; nothing is sent."""
    try:
        family, _, _, _, target = plain_socket.getaddrinfo(host, 9, type=plain_socket.SOCK_DGRAM)[0]
        with plain_socket.socket(family, plain_socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None
