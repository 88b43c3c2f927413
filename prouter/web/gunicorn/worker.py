"""The gunicorn worker: accepts clients on the gevent loop and gives each connection to the proxy.

It is a subclass of gunicorn's gevent worker, so that gunicorn manages listening sockets, signals, timeouts, graceful
stops and recycling. Connections are the router's own, because a proxy needs the bytes as they arrived.
"""

from __future__ import annotations

import _socket
import errno
import gc
import logging
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import get_hub

from prouter.web.gunicorn.balance import Balance, Standing, standing
from prouter.web.gunicorn.internals import GunicornWorker
from prouter.web.metrics import counters
from prouter.web.metrics.vitals import publish

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["ProxyWorker"]

log = logging.getLogger("prouter.web")

_LAST_CHANCE = 1.0
"""Seconds idle connections are kept open after a stop was asked for, because a request may be on its way already."""
_BRIDGE_END = 1.0
"""Seconds both ends of a bridge have to confirm its close when the worker stops."""
_ACCEPT_PAUSE = 0.05
"""Seconds to wait when accepting fails for lack of descriptors."""
_OTHER_DESCRIPTORS = 100
"""Descriptors reserved for everything but clients' connections."""
_BEAT = 1.0
"""Seconds between sweeps; clients that disconnected unnoticed are looked for twice as often."""
_DEAD_CLIENT = {_socket.TCP_KEEPIDLE: 60, _socket.TCP_KEEPINTVL: 15, _socket.TCP_KEEPCNT: 4}
"""TCP keepalive (tcp(7)): seconds of silence before the first probe, seconds between probes, probes in vain."""
_STEP_BACK = 0.001
"""Seconds to leave connections to a worker with fewer."""
_QUEUE = 4096
"""Connections that may wait to be accepted when the router stops: the sockets' backlog."""


def _find_dead_clients(listener: _socket.socket) -> None:
    """Have the kernel end connections whose peer machine does not respond; accepted sockets inherit the options."""
    if listener.family == _socket.AF_UNIX:
        return
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    for option, value in _DEAD_CLIENT.items():
        listener.setsockopt(_socket.IPPROTO_TCP, option, value)


class ProxyWorker(GunicornWorker):
    """A worker process of the HTTP side."""

    _hurried = False
    """Whether to close idle connections soon, because no other worker took over."""

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        # Imported here: the gevent worker patches the standard library after the fork.
        from prouter.access.assertion_keys import AssertionKeys
        from prouter.access.setup import gate_for
        from prouter.config.directories import access_dir, broker_endpoint, load_from_environment
        from prouter.limits.requests import limits_for
        from prouter.process.descriptors import raise_descriptor_limit
        from prouter.web import router_client
        from prouter.web.assertions import Assertions
        from prouter.web.gunicorn.admin import AdminService
        from prouter.web.proxy.addresses.hops import pseudonym
        from prouter.web.proxy.server import ProxyServer

        config = load_from_environment()
        descriptors = raise_descriptor_limit()
        client = self._client = router_client.start(config, broker_endpoint(config))
        client.gate = gate_for(config)
        client.limits = limits_for(config)
        keys = AssertionKeys(access_dir(config))
        client.assertions = Assertions(keys, lambda: str(client.router.get("uid", "")))
        mark = pseudonym(f"{broker_endpoint(config)} {config.control.port} {config.identity.uid}")
        admin = AdminService(self.wsgi, self.wsgi.at_once)
        self._proxy = ProxyServer(client, config, admin.start, mark=mark, gate=client.gate)
        self._proxy.max_connections = min(config.control.max_connections, descriptors - _OTHER_DESCRIPTORS)
        self._balance = Balance(self.age)
        self._drain_timeout = config.control.drain_timeout
        listening = self._listen()
        gc.freeze()  # what exists now lives as long as the process: no collection needs to look at it again
        self._balance.beat(time.monotonic(), 0)
        self.wake_arbiter()
        while self.alive:
            self._beat()
            self._proxy.drop_disconnected()
            gevent.sleep(_BEAT / 2)
        self._balance.leave()
        self.wake_arbiter()
        for _listener, watcher in listening:
            watcher.stop()
            watcher.close()
        self._stop_listening([listener for listener, _watcher in listening])
        client.leaving = True
        self._drain(client)
        self._publish()
        client.stop()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle SIGTERM: drain and end. A replaced worker takes its time, unless asked twice."""
        self._hurried = not self.alive or standing(self.age) is not Standing.REPLACED
        super().handle_exit(sig, frame)

    def notify(self) -> None:
        """Tell gunicorn that the worker is alive, and drain if gunicorn died: the next one has workers of its own."""
        self.heartbeat()
        if self.alive and self.orphaned:
            log.warning("event=parent_gone pid=%d", self.pid)
            self.alive = False

    def _listen(self) -> list[tuple[Any, Any]]:
        """Begin to accept clients, and return the listening sockets with their watchers."""
        listening = []
        for inherited in self.sockets:
            listener = _socket.socket(fileno=os.dup(inherited.fileno()))
            listener.setblocking(False)
            _find_dead_clients(listener)
            watcher = get_hub().loop.io(listener.fileno(), 1)
            watcher.start(partial(self._accept, listener, watcher))
            listening.append((listener, watcher))
        return listening

    def _accept(self, listener: Any, watcher: Any) -> None:
        """Accept one connection, and leave the others in the queue to other workers."""
        if self._balance.step_back(time.monotonic(), len(self._proxy.connections)):
            self._pause(_STEP_BACK, listener, watcher)
            return
        try:
            self._take(listener)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.error("event=accept_failed error=%r", error)
                self._pause(_ACCEPT_PAUSE, listener, watcher)

    def _take(self, listener: Any) -> None:
        """Accept the next client in the queue and serve it.

        Raises:
            OSError: the queue is empty, or no client can be accepted.
        """
        fd, address = listener._accept()
        sock = _socket.socket(fileno=fd)
        try:
            self._proxy.accept(sock, address)
        except OSError as error:
            log.debug("event=client_disconnected error=%r", error)
            sock.close()

    def _stop_listening(self, listeners: list[Any]) -> None:
        """Close the listening sockets: in those of a process that only drains, clients would wait for nobody.

        If nobody replaces the worker, it first serves the clients in the queue, which the close would reset.
        """
        if standing(self.age) is not Standing.REPLACED:
            for listener in listeners:
                with suppress(OSError):
                    for _ in range(_QUEUE):
                        self._take(listener)
        for listener in (*listeners, *self.sockets):
            listener.close()

    def _pause(self, seconds: float, listener: Any, watcher: Any) -> None:
        """Stop accepting for a while."""

        def again() -> None:
            if self.alive:
                watcher.start(partial(self._accept, listener, watcher))

        watcher.stop()
        gevent.spawn_later(seconds, again)

    def _beat(self) -> None:
        """Do what is due once a second: heartbeat, timeouts, figures, and the request for a successor."""
        self.notify()
        gevent.sleep(_BEAT / 2)
        now = time.monotonic()
        self._proxy.sweep(now)
        self._balance.beat(now, len(self._proxy.connections))
        self._publish()
        if self.max_requests and self._proxy.requests >= self.max_requests and standing(self.age) is Standing.STAYS:
            log.info("event=worker_due requests=%d", self._proxy.requests)
            self._balance.ask_for_successor()
            self.wake_arbiter()

    def _publish(self) -> None:
        """Publish the worker's figures for ``/metrics``."""
        publish(counters.current(), self._client, len(self._proxy.connections))

    def _drain(self, client: RouterClient) -> None:
        """Finish requests and bridges in progress, for at most ``control.drain_timeout`` seconds.

        A client may send a request at the moment its idle connection is closed. So while other workers serve, an idle
        connection is kept for one more request, whose response tells the client to close it.
        """
        proxy = self._proxy
        proxy.drain()
        started = time.monotonic()
        while (proxy.connections or client.list_bridges()) and time.monotonic() - started < self._drain_timeout:
            self.notify()
            self._publish()
            if self.orphaned and client.router_draining:
                break  # its parent, which would kill it in time, is dead
            if time.monotonic() - started > _LAST_CHANCE and (self._hurried or client.router_draining):
                proxy.close_idle()
            gevent.sleep(0.1)
            proxy.sweep(time.monotonic())
        if proxy.connections or client.list_bridges():
            log.warning(
                "event=drain_timeout connections=%d bridges=%d", len(proxy.connections), len(client.list_bridges())
            )
        proxy.end()
        self._end_bridges(client)
        gevent.sleep(0.05)
        proxy.close()

    def _end_bridges(self, client: RouterClient) -> None:
        """Close both ends of the remaining bridges, with a WebSocket close where they respond in time."""
        for bridge in client.list_bridges():
            client.on_bridge_end(bridge["uid"])
        deadline = time.monotonic() + _BRIDGE_END
        while client.list_bridges() and time.monotonic() < deadline:
            self.notify()
            gevent.sleep(0.02)
