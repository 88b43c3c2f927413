"""A worker's proxy: which request goes where, waiting for jobs that start, and the care of all open connections."""

from __future__ import annotations

import _socket
import logging
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import gevent
from gevent import get_hub
from gevent.event import Event

from prouter.config import RouterConfig
from prouter.errors import AgentUnavailable, JobStarting, JobUnreachable, Overloaded, PRouterError
from prouter.jobs import State
from prouter.web.proxy.connection import ClientConnection
from prouter.web.proxy.eviction import make_room
from prouter.web.proxy.exchange import ProxyExchange, ended_error
from prouter.web.proxy.forwarded import Origin, as_seen_by_the_client
from prouter.web.proxy.heads import RequestHead
from prouter.web.proxy.hops import pseudonym
from prouter.web.proxy.tunnel import Tunnel
from prouter.web.proxy.upstream import UpstreamPool
from prouter.web.router_client import JobRoute, RouterClient

__all__ = ["ProxyServer"]

log = logging.getLogger("prouter.proxy")

_HEAD_TIMEOUT = 30.0
"""Seconds a client has for its first request head."""
_IDLE_TIMEOUT = 75.0
"""Seconds a client's connection may stay idle between requests."""
_UNSENT = 256 * 1024
"""Bytes the kernel keeps for a client that does not take them; without a bound it would be megabytes."""

_LOOP = (
    "this request has come through this router before: a job's server is the router itself, or passes requests on to "
    "it; a job that asks anew must leave out the field X-PRouter-Via of the request it serves"
)

AdminHandler = Callable[[ClientConnection, RequestHead], None]


class NoTunnels(PRouterError):
    """A client takes us for a forward proxy. Passed on, the two ends would disagree where the answer ends."""

    code = "not_implemented"
    status = 501
    level = logging.INFO


class LoopDetected(PRouterError):
    """A request has come through this router before (RFC 5842 section 7.2)."""

    code = "loop_detected"
    status = 508
    level = logging.WARNING


class ProxyServer:
    """See the module's docstring.

    Args:
        client: the worker's connection to the broker.
        config: the router's configuration.
        admin: starts an exchange for a request that is not for a job.
        mark: this router's pseudonym among the hops of a request, the same for all its workers.
    """

    def __init__(self, client: RouterClient, config: RouterConfig, admin: AdminHandler, *, mark: bytes = b"") -> None:
        self.client = client
        self.loop: Any = get_hub().loop
        self.pool = UpstreamPool(client)
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[ProxyExchange | Tunnel] = set()
        self.draining = False
        self.requests = 0
        self.mark = mark or pseudonym()
        self.max_head = config.control.max_head
        self.head_timeout = _HEAD_TIMEOUT
        self.idle_timeout = _IDLE_TIMEOUT
        self.body_timeout = config.control.body_timeout
        self.upload_timeout = config.control.upload_timeout
        self._admin = admin
        self._hold = config.control.hold
        self._response_timeout = config.control.response_timeout
        self.max_connections = config.control.max_connections
        domain = config.control.job_domain
        self.job_domain = b"." + domain.lower().strip(".").encode("ascii") if domain else b""
        self.own_names_only = bool(domain) and config.control.job_domain_only
        self._trust_unix = "unix" in config.control.trusted_proxies
        self._trusted: list[IPv4Network | IPv6Network] = [
            ip_network(entry, strict=False) for entry in config.control.trusted_proxies if entry != "unix"
        ]

    # -- connections --------------------------------------------------------------------------------------------

    def accept(self, sock: _socket.socket, address: Any) -> None:
        """Serve a client that just connected."""
        sock.setblocking(False)
        if sock.family == _socket.AF_UNIX:
            origin = Origin("unix", 0, self._trust_unix)
        else:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NOTSENT_LOWAT, _UNSENT)
            host = str(address[0]).removeprefix("::ffff:")
            origin = Origin(host, sock.getsockname()[1], self._is_trusted(host))
        if len(self.connections) >= self.max_connections:
            make_room(self.connections)
        connection = ClientConnection(self, sock, origin)
        self.connections.add(connection)
        if len(self.connections) > self.max_connections:
            connection.fail(Overloaded("this worker has no free connection", retry_after=1))

    def forget(self, connection: ClientConnection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)

    def _is_trusted(self, host: str) -> bool:
        if not self._trusted:
            return False
        address = ip_address(host.partition("%")[0])
        return any(address in network for network in self._trusted if network.version == address.version)

    def sweep(self, now: float) -> None:
        """Timeouts; to be called about once a second."""
        self.pool.sweep(now)
        self.drop_vanished()
        for connection in list(self.connections):
            if connection.deadline and now > connection.deadline:
                connection.expire()
        for exchange in list(self.exchanges):
            exchange.check_timeout(now, self._response_timeout, self.upload_timeout)

    def drop_vanished(self) -> None:
        """Notice clients that went away while nothing was read from them."""
        for connection in list(self.connections):
            if connection.vanished():
                connection.gone()

    def drain(self) -> None:
        """Answer what comes with ``Connection: close`` from now on."""
        self.draining = True

    def close_idle(self) -> None:
        """While draining: close connections that have no request in progress."""
        for connection in list(self.connections):
            if connection.exchange is None and not connection.closing:
                connection.finish()

    def end(self) -> None:
        """The time is up: requests without an answer so far get one, others are cut."""
        for connection in list(self.connections):
            if connection.exchange is not None:
                connection.exchange.end("the worker stops")
            elif not connection.closing:
                connection.finish()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.connections):
            connection.close()
        self.pool.close()

    # -- requests -----------------------------------------------------------------------------------------------

    def dispatch(self, connection: ClientConnection, head: RequestHead, looped: bool) -> None:
        """Start the exchange for a request; the connection's `exchange` is set on return unless it is over already.

        Args:
            looped: whether the request has come through this router before.
        """
        self.requests += 1
        connection.began = time.monotonic()
        if looped:
            connection.fail(LoopDetected(_LOOP), head)
            return
        if head.method == b"CONNECT":
            connection.fail(NoTunnels("CONNECT is not supported: jobs are reached under their paths"), head)
            return
        found = self._match(head, connection.origin)
        if found is None:
            self._admin(connection, head)
            return
        owner, job, target, own_host = found
        exchange = ProxyExchange(self, connection, head, target, own_host=own_host)
        connection.exchange = exchange
        self.exchanges.add(exchange)
        route = self.client.cached_route(owner, job)
        if route is not None and route.up and route.record.state is State.RUNNING and route.record.endpoint:
            exchange.forward(route)
        else:
            gevent.spawn(self._resolve, exchange, owner, job)

    def _match(self, head: RequestHead, origin: Origin) -> tuple[str, str, bytes, bool] | None:
        """(connection uid, job uid, target without prefix, own host) of a request for a job, None for all others."""
        target = head.target
        if self.job_domain:
            # Not every proxy before us leaves Host as it was.
            for name in (head.host, as_seen_by_the_client(head, origin).host):
                host = name.partition(b":")[0].lower().rstrip(b".")  # with its dot a name is absolute, and the same
                if host.endswith(self.job_domain):
                    return "", host[: -len(self.job_domain)].decode("latin-1"), target, True
        if not target.startswith(b"/jobs/"):
            return None
        path, mark, query = target.partition(b"?")
        parts = path.split(b"/", 5)
        if len(parts) < 5 or parts[4] != b"http" or not parts[2]:
            return None
        rest = b"/" + parts[5] if len(parts) == 6 else b""
        return parts[2].decode("latin-1"), parts[3].decode("latin-1"), rest + mark + query, False

    def _resolve(self, exchange: ProxyExchange, owner: str, job: str) -> None:
        """Find the job and wait, for a bounded time, until it can be reached. Runs in a greenlet."""
        try:
            deadline = time.monotonic() + self._hold
            route = self.client.usable_route(owner, job, partial(self._obstacle_for, exchange), deadline)
        except PRouterError as error:
            if exchange.waiting:
                exchange.fail(error)
            return
        except Exception:
            log.exception("event=resolve_failed job=%s", job)
            if exchange.waiting:
                exchange.fail(PRouterError("the request could not be routed"))
            return
        if exchange.waiting:
            exchange.forward(route)

    def _obstacle_for(self, exchange: ProxyExchange, route: JobRoute) -> PRouterError | None:
        if not exchange.waiting:
            raise PRouterError("the client is gone")
        return self._obstacle(route)

    def _obstacle(self, route: JobRoute) -> PRouterError | None:
        """Why a request cannot be forwarded now; status 503 for what may pass."""
        record = route.record
        state = record.state.value
        if record.ended:
            return ended_error(route)
        if not route.up:
            return AgentUnavailable(
                "the job's agent is out of reach at the moment", job=record.uid, state=state, retry_after=2
            )
        if record.state is State.NEW:
            return JobStarting(
                f"job '{record.uid}' has not been started: POST …/{record.uid}/start starts it",
                job=record.uid,
                state=state,
                retry_after=2,
            )
        if record.state is State.PENDING:
            return JobStarting(f"job '{record.uid}' is starting", job=record.uid, state=state, retry_after=2)
        if not record.endpoint:
            return JobUnreachable(
                f"job '{record.uid}' has no HTTP server: it was started with port_expected_count 0 and without expose; "
                'a job with one needs expose, as {"port": "assign"}, or port_expected_count 1 if it reports its port',
                job=record.uid,
                state=state,
                code="no_endpoint",
            )
        return None

    def explain(self, exchange: ProxyExchange, detail: str, patience: float, *, reached: bool) -> None:
        """A job's connection broke: wait a moment for the news that the job has ended, then answer.

        Args:
            patience: seconds to wait.
            reached: whether the job had the request.
        """
        gevent.spawn(self._explain, exchange, detail, patience, reached)

    def _explain(self, exchange: ProxyExchange, detail: str, patience: float, reached: bool) -> None:
        route = exchange.route
        if route is not None and not route.record.ended:
            self._wait_for_end(route, time.monotonic() + patience)
        if route is not None and not route.record.ended and exchange.waiting:
            exchange.route = self._checked(route)
        exchange.answer_with_reason(detail, reached=reached)

    def _checked(self, route: JobRoute) -> JobRoute:
        """The route as the broker knows it: this worker may be behind, or have been without the broker meanwhile."""
        try:
            return self.client.checked_route(route.connection, route.record.uid)
        except PRouterError as error:
            log.info("event=end_not_checked job=%s error=%r", route.record.uid, error.detail)
            return route

    def _wait_for_end(self, route: JobRoute, deadline: float) -> None:
        changed = Event()
        route.waiters.add(changed.set)
        try:
            while not route.record.ended and changed.wait(max(0.0, deadline - time.monotonic())):
                changed.clear()
        finally:
            route.waiters.discard(changed.set)
