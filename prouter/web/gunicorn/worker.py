"""The gunicorn worker: accepts clients on the gevent loop and gives each connection to the proxy.

A subclass of gunicorn's gevent worker, so that everything gunicorn manages (listening sockets, signals, timeouts,
graceful stops, recycling) stays gunicorn's; only what happens on a connection is ours, because a proxy needs the bytes
that arrived.
"""

from __future__ import annotations

import _socket
import errno
import gc
import logging
import os
import signal
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent import get_hub
from gunicorn.workers.ggevent import GeventWorker

from prouter.web.gunicorn.balance import Balance, Standing, standing
from prouter.web.metrics import counters
from prouter.web.metrics.vitals import tell

if TYPE_CHECKING:
    from prouter.web.router_client import RouterClient

__all__ = ["ProxyWorker"]

log = logging.getLogger("prouter.web")

_LAST_CHANCE = 1.0
"""Seconds idle connections are still served after a stop was asked for, lest a request under way meets a closed door.
"""
_BRIDGE_END = 1.0
"""Seconds that both ends of a bridge have to answer its close when the worker stops."""
_ACCEPT_PAUSE = 0.05
"""Seconds to wait when accepting fails for lack of descriptors."""
_OTHER_DESCRIPTORS = 100
"""Descriptors left to all that is no client's connection."""
_BEAT = 1.0
"""Seconds between sweeps; who went away while nothing was read from it is looked for twice as often."""
_DEAD_CLIENT = {_socket.TCP_KEEPIDLE: 60, _socket.TCP_KEEPINTVL: 15, _socket.TCP_KEEPCNT: 4}
"""When a silent client is asked whether it is there, again how often, and how often in vain (tcp(7)); seconds."""
_STEP_BACK = 0.001
"""Seconds to leave to a worker with fewer connections."""
_QUEUE = 4096
"""Connections that may wait to be accepted when the router stops: what the sockets' backlog allows."""


def _find_dead_clients(listener: _socket.socket) -> None:
    """Have the kernel end connections of clients whose machine is gone; accepted sockets inherit that."""
    if listener.family == _socket.AF_UNIX:
        return
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    for option, value in _DEAD_CLIENT.items():
        listener.setsockopt(_socket.IPPROTO_TCP, option, value)


class ProxyWorker(GeventWorker):  # type: ignore[misc]
    """See the module's docstring."""

    age: int
    alive: bool
    pid: int
    ppid: int
    tmp: Any
    _hurried = False

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        # Imported here: the gevent worker patches the standard library after the fork.
        from prouter.config.directories import broker_endpoint, load_from_environment
        from prouter.process.descriptors import raise_descriptor_limit
        from prouter.web import router_client
        from prouter.web.gunicorn.admin import AdminService
        from prouter.web.proxy.hops import pseudonym
        from prouter.web.proxy.server import ProxyServer

        config = load_from_environment()
        descriptors = raise_descriptor_limit()
        client = self._client = router_client.start(config, broker_endpoint(config))
        mark = pseudonym(f"{broker_endpoint(config)} {config.control.port} {config.identity.uid}")
        self._proxy = ProxyServer(client, config, AdminService(self.wsgi).start, mark=mark)
        self._proxy.max_connections = min(config.control.max_connections, descriptors - _OTHER_DESCRIPTORS)
        self._balance = Balance(self.age)
        self._drain_timeout = config.control.drain_timeout
        loop = get_hub().loop
        listeners, watchers = [], []
        for inherited in self.sockets:
            listener = _socket.socket(fileno=os.dup(inherited.fileno()))
            listener.setblocking(False)
            _find_dead_clients(listener)
            watcher = loop.io(listener.fileno(), 1)
            watcher.start(partial(self._accept, listener, watcher))
            listeners.append(listener)
            watchers.append(watcher)
        gc.freeze()
        self._balance.beat(time.monotonic(), 0)
        self._wake_parent()
        while self.alive:
            self._beat()
            self._proxy.drop_disconnected()
            gevent.sleep(_BEAT / 2)
        self._balance.leave()
        self._wake_parent()
        for watcher in watchers:
            watcher.stop()
            watcher.close()
        self._stop_listening(listeners)
        client.leaving = True
        self._drain(client)
        self._tell()
        client.stop()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish and end. Where somebody took this worker's place there is no hurry, unless asked again."""
        self._hurried = not self.alive or standing(self.age) is not Standing.DISMISSED
        super().handle_exit(sig, frame)

    def notify(self) -> None:
        """Tell gunicorn that we live. Should it have died, the next one's workers take over, and this one drains."""
        self.tmp.notify()
        if self.alive and self._orphan:
            log.warning("event=parent_gone pid=%d", self.pid)
            self.alive = False

    @property
    def _orphan(self) -> bool:
        return os.getppid() != self.ppid

    def _wake_parent(self) -> None:
        """Have gunicorn look after its workers now, as it does whenever one ends."""
        if not self._orphan:
            os.kill(self.ppid, signal.SIGCHLD)

    def _accept(self, listener: Any, watcher: Any) -> None:
        """Take one connection; the others in the queue are left for other workers."""
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
        """Serve the next client in the queue.

        Raises:
            OSError: there is none, or none can be taken.
        """
        fd, address = listener._accept()
        sock = _socket.socket(fileno=fd)
        try:
            self._proxy.accept(sock, address)
        except OSError as error:
            log.debug("event=client_vanished error=%r", error)
            sock.close()

    def _stop_listening(self, listeners: list[Any]) -> None:
        """Close the listening sockets, which would let clients wait for nobody while the last of their owners drains.

        When the router stops, who is in the queue already is served: closing it resets them.
        """
        if standing(self.age) is not Standing.DISMISSED:
            for listener in listeners:
                with suppress(OSError):
                    for _ in range(_QUEUE):
                        self._take(listener)
        for listener in (*listeners, *self.sockets):
            listener.close()

    def _pause(self, seconds: float, listener: Any, watcher: Any) -> None:
        """Accept nothing for a while."""

        def again() -> None:
            if self.alive:
                watcher.start(partial(self._accept, listener, watcher))

        watcher.stop()
        gevent.spawn_later(seconds, again)

    def _beat(self) -> None:
        """Once a second: tell gunicorn that we live, sweep timeouts, ask to be replaced when due."""
        self.notify()
        gevent.sleep(_BEAT / 2)
        now = time.monotonic()
        self._proxy.sweep(now)
        self._balance.beat(now, len(self._proxy.connections))
        self._tell()
        if self.max_requests and self._proxy.requests >= self.max_requests and standing(self.age) is Standing.STAYS:
            log.info("event=worker_worn requests=%d", self._proxy.requests)
            self._balance.wear_out()
            self._wake_parent()

    def _tell(self) -> None:
        tell(counters.current(), self._client, len(self._proxy.connections))

    def _drain(self, client: RouterClient) -> None:
        """Finish what is in progress, bridges included, for at most ``control.drain_timeout`` seconds.

        Clients may send a request at the very moment their idle connection is closed. So where others serve, it is kept
        for its next request, whose answer tells the client to close it.
        """
        proxy = self._proxy
        proxy.drain()
        started = time.monotonic()
        while (proxy.connections or client.list_bridges()) and time.monotonic() - started < self._drain_timeout:
            self.notify()
            self._tell()
            if self._orphan and client.router_draining:
                break  # nobody else would end it
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
        """Close both ends of the bridges that are left, properly where they let us."""
        for bridge in client.list_bridges():
            client.on_bridge_end(bridge["uid"])
        deadline = time.monotonic() + _BRIDGE_END
        while client.list_bridges() and time.monotonic() < deadline:
            self.notify()
            gevent.sleep(0.02)
