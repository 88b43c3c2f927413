"""Connect to agents that listen: one attempt over the host's addresses, names looked up in threads.

A plain TCP connection is made first: it tells why an address cannot be reached, which libzmq does not, and libzmq's
thread never waits for a name. Where it succeeds, a DEALER connects to the same address. Whoever asked decides about the
next attempt and its delay (`prouter.broker.links.dials`).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from errno import EINPROGRESS
from functools import partial
from typing import Any

from prouter.addresses import tcp_endpoint
from prouter.broker.base.timers import Timers
from prouter.broker.sockets.poller import Poller
from prouter.broker.sockets.port import Port
from prouter.errors import Forbidden
from prouter.targets import Found, Targets
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection

__all__ = ["Dialling"]

log = logging.getLogger("prouter.broker")

_TIMEOUT = 2.0
"""Seconds that connecting to one address may take. The kernel resends its SYN at growing intervals, so a fresh attempt
finds a network that is back sooner than an old one."""


class Dialling:
    """Attempts of the broker to connect. Each ends with `connected` or `failed`, unless its port is closed meanwhile.

    Args:
        timers: of the loop.
        wake: makes the loop call `turn`; may be called by any thread.
        poller: likewise.
        connected: gets a port and its connection, which is being made.
        failed: gets a port that could be connected to no address.
        troubled: told in words why an address could not be connected to.
        forbidden: gets a port that may be connected to no address of its host, and why.
        targets: decides that.
    """

    def __init__(
        self,
        timers: Timers,
        wake: Callable[[], None],
        poller: Poller,
        connected: Callable[[Port, DealerConnection, float], None],
        failed: Callable[[Port, float], None],
        troubled: Callable[[Port, str], None],
        forbidden: Callable[[Port, str, float], None],
        targets: Targets,
    ) -> None:
        self._timers = timers
        self._wake = wake
        self._poller = poller
        self._connected = connected
        self._failed = failed
        self._troubled = troubled
        self._forbidden = forbidden
        self._targets = targets
        self._found: deque[tuple[Port, list[Found], ClientCurve | None, str]] = deque()
        self._refused: deque[tuple[Port, str]] = deque()

    def dial(self, port: Port, host: str, number: int, curve: ClientCurve | None) -> None:
        """Connect `port` to the agent at TCP port `number` of `host`, a name or an address without brackets."""
        if not port.closed:
            threading.Thread(target=self._look_up, args=(port, host, number, curve), daemon=True).start()

    def turn(self, now: float) -> None:
        """Go on with those whose addresses have been looked up."""
        while self._refused:
            self._forbidden(*self._refused.popleft(), now)
        while self._found:
            port, addresses, curve, problem = self._found.popleft()
            if problem:
                self._troubled(port, problem)
            self._attempt(port, addresses, curve, now)

    def _look_up(self, port: Port, host: str, number: int, curve: ClientCurve | None) -> None:
        """Look up the addresses of a host, which may block: runs in a thread of its own.

        The attempts take these addresses, so that a name cannot stand for others than those that were checked.
        """
        addresses: list[Found] = []
        problem = ""
        try:
            found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
            addresses += self._targets.usable(host, [(entry[0], entry[4]) for entry in found])
        except Forbidden as error:
            self._refused.append((port, error.detail))
            self._wake()
            return
        except (OSError, UnicodeError) as error:
            log.debug("event=address_not_found host=%s error=%r", host, str(error))
            problem = f"the name cannot be looked up: {getattr(error, 'strerror', None) or error}"
        self._found.append((port, addresses, curve, problem))
        self._wake()

    def _attempt(self, port: Port, addresses: list[Found], curve: ClientCurve | None, now: float) -> None:
        """Connect to the first address, and to the others if that fails."""
        if port.closed:
            return
        if not addresses:
            self._failed(port, now)
            return
        (family, address), *others = addresses
        go_on = partial(self._attempt, port, others, curve)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as failure:
            log.debug("event=connecting_failed address=%s error=%r", address, str(failure))
            self._troubled(port, str(failure.strerror or failure).lower())
            go_on(now)
            return
        sock.setblocking(False)
        error = sock.connect_ex(address)
        if error not in (0, EINPROGRESS):
            sock.close()
            self._troubled(port, os.strerror(error).lower())
            go_on(now)
            return

        def settle(now: float) -> None:
            timer.cancel()
            self._poller.unwatch(sock.fileno())
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            sock.close()
            if error:
                self._troubled(port, os.strerror(error).lower())
            if port.closed or error:
                go_on(now)
            else:
                self._troubled(port, "what listens there does not answer as an agent does; dial its server.port")
                self._connected(port, _dealer(address, curve), now)

        def give_up(now: float) -> None:
            self._poller.unwatch(sock.fileno())
            sock.close()
            self._troubled(port, "no answer")
            go_on(now)

        timer = self._timers.at(now + _TIMEOUT, give_up)
        self._poller.watch_writing(sock.fileno(), settle)


def _dealer(address: Any, curve: ClientCurve | None) -> DealerConnection:
    """A connection to an address as `getaddrinfo` tells it."""
    host, number = address[:2]
    return DealerConnection(tcp_endpoint(host, number), curve=curve)
