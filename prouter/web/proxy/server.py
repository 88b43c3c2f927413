"""A worker's proxy: dispatches requests, holds those for jobs that start, and looks after all open connections."""

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

from prouter.access.credentials import SIGN_IN
from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.config import RouterConfig
from prouter.errors import Forbidden, Overloaded, PRouterError, Unauthorized
from prouter.jobs import State
from prouter.limits.clients import client_key
from prouter.web.audit import AuditLog
from prouter.web.proxy.addresses.cross_site import changes_something, is_misused
from prouter.web.proxy.addresses.fields import RequestFields
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.hops import pseudonym
from prouter.web.proxy.addresses.roots import Asked, asked_for
from prouter.web.proxy.callers.identity import Identity
from prouter.web.proxy.connection import ClientConnection
from prouter.web.proxy.entrance import Entrance, explained
from prouter.web.proxy.eviction import evict
from prouter.web.proxy.exchange import ProxyExchange
from prouter.web.proxy.interfaces import Client, ExplainedExchange, JobExchange
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.own_responses.pages import request_id
from prouter.web.proxy.own_responses.refusals import (
    ConnectRefused,
    LoopDetected,
    not_allowed,
    obstacle,
    read_only,
    unauthorized,
)
from prouter.web.proxy.upstream import UpstreamPool
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["ProxyServer"]

log = logging.getLogger("prouter.proxy")

_HEAD_TIMEOUT = 30.0
"""Seconds a client has for its first request head."""
_IDLE_TIMEOUT = 75.0
"""Seconds a client's connection may be idle between requests."""
_UNSENT = 256 * 1024
"""Bytes the kernel buffers for a client that does not read; without TCP_NOTSENT_LOWAT that would be megabytes."""

_CROSS_SITE = "pages of other sites may not use a job with what your browser adds to their requests by itself"
_GRACE = 2.0
"""Seconds a request may be old when its token is revoked and it goes on: the request that revokes its own token."""
_SEARCH = 6.0
"""Seconds for which open requests are looked at after a token was revoked."""

_LOOP = (
    "this request has come through this router before: a job's server is the router itself, or forwards requests to "
    "it. A job that makes a request of its own must not copy the field X-PRouter-Via from the request it serves"
)

AdminHandler = Callable[[Client, Forwarded], None]


class ProxyServer:
    """The proxy of one worker; `prouter.web.proxy.interfaces.ProxyContext` is what connections and exchanges use of it.

    Args:
        client: the worker's connection to the broker.
        config: the router's configuration.
        admin: starts an exchange for a request that is not for a job.
        mark: this router's pseudonym among the hops of a request, the same for all its workers.
        gate: who may send requests; None for everybody.

    Attributes:
        connections: all open connections of clients.
        requests: number of requests so far.
        max_connections: connections beyond which others are evicted.
    """

    def __init__(
        self,
        client: RouterClient,
        config: RouterConfig,
        admin: AdminHandler,
        *,
        mark: bytes = b"",
        gate: AccessGate | None = None,
    ) -> None:
        self.client = client
        self.loop: Any = get_hub().loop
        self.pool = UpstreamPool(client)
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[JobExchange] = set()
        self.draining = False
        self.requests = 0
        self.mark = mark or pseudonym()
        self.request_fields = RequestFields.of(config.control)
        self.max_head = config.control.max_head
        self.head_timeout = _HEAD_TIMEOUT
        self.idle_timeout = _IDLE_TIMEOUT
        self.body_timeout = config.control.body_timeout
        self.upload_timeout = config.control.upload_timeout
        self._admin = admin
        self._gate = gate
        self._identity = Identity(gate, config.control) if gate is not None else None
        self._audit = client.audit
        self._limits = client.limits
        self._entrance = Entrance(gate, config.control, self) if gate is not None else None
        self._rated = client.limits if client.limits is not None and client.limits.per_owner else None
        """The limits if they bound the requests of owners."""
        self._generation = gate.generation if gate is not None else 0
        self._search_until = 0.0
        """Monotonic time until which requests with revoked tokens are looked for."""
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
        """Serve a client that has just connected."""
        sock.setblocking(False)
        if sock.family == _socket.AF_UNIX:
            origin = Origin("unix", 0, self._trust_unix)
        else:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NOTSENT_LOWAT, _UNSENT)
            host = str(address[0]).removeprefix("::ffff:")
            origin = Origin(host, sock.getsockname()[1], self._is_trusted(host))
        if len(self.connections) >= self.max_connections:
            evict(self.connections)
        connection = ClientConnection(self, sock, origin)
        self.connections.add(connection)
        if len(self.connections) > self.max_connections:
            detail = f"this worker has {self.max_connections} clients' connections, the limit control.max_connections"
            connection.fail(Overloaded(detail, retry_after=1))

    def forget(self, client: Client) -> None:
        """Drop a connection that is closed."""
        self.connections.discard(client)

    def _is_trusted(self, host: str) -> bool:
        if not self._trusted:
            return False
        address = ip_address(host.partition("%")[0])
        return any(address in network for network in self._trusted if network.version == address.version)

    def sweep(self, now: float) -> None:
        """Apply timeouts; to be called about once a second."""
        self.pool.sweep(now)
        self.drop_disconnected()
        for connection in list(self.connections):
            if connection.deadline and now > connection.deadline:
                connection.expire()
        for exchange in list(self.exchanges):
            exchange.check_timeout(now, self._response_timeout, self.upload_timeout)
        if self._gate is not None:
            self._end_revoked(self._gate, now)

    def _end_revoked(self, gate: AccessGate, now: float) -> None:
        """End what goes on for long (WebSockets, events, followed logs) once its token is revoked or has expired."""
        gate.refresh(now)
        if gate.generation != self._generation:
            self._generation, self._search_until = gate.generation, now + _SEARCH
        if now >= self._search_until:
            return
        for connection in list(self.connections):
            exchange, principal = connection.exchange, connection.principal
            if exchange is None or principal is None or now - connection.began < _GRACE:
                continue
            if not gate.holds(principal):
                log.info("event=request_ended reason=token_revoked name=%s token=%s", principal.name, principal.id)
                exchange.end("the access token is not valid any more")
        self.client.end_revoked_bridges()

    def drop_disconnected(self) -> None:
        """Find clients that disconnected while their connections were not read."""
        for connection in list(self.connections):
            if connection.has_disconnected():
                connection.disconnected()

    def drain(self) -> None:
        """Send ``Connection: close`` with every response from now on."""
        self.draining = True

    def close_idle(self) -> None:
        """Close connections that have no request in progress; to be called while draining."""
        for connection in list(self.connections):
            if connection.exchange is None and not connection.closing:
                connection.finish()

    def end(self) -> None:
        """End all exchanges at the drain timeout: with an error before the response has begun, else with a cut."""
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

    def dispatch(self, client: Client, head: RequestHead, looped: bool) -> None:
        """Start the exchange for a request. On return it is the client's `exchange`, unless it is over already.

        Args:
            looped: whether the request has come through this router before.
        """
        self.requests += 1
        client.began = time.monotonic()
        if looped:
            client.fail(LoopDetected(_LOOP), head)
            return
        if head.method == b"CONNECT":
            client.fail(ConnectRefused("CONNECT is not supported: jobs are reached under their paths"), head)
            return
        forwarded = Forwarded(head, client.origin)
        asked = self._match(forwarded)
        client.principal = forwarded.principal = principal = self._principal(forwarded, asked)
        if asked is None:
            self._admin(client, forwarded)
            return
        if self._entrance is not None and self._entrance.is_asked(asked):
            self._entrance.enter(client, forwarded, asked)
            return
        if principal is None:
            missing = unauthorized(forwarded, self._limits, self.client_key)
            if missing.limit or self._entrance is None or not self._entrance.leads_on(client, forwarded, asked):
                client.fail(explained(missing, forwarded, asked), head)
            return
        if principal.ambient and (refused := self._misuse(forwarded, principal, asked)) is not None:
            client.fail(refused, head)
            return
        owner, job = asked.connection, asked.job
        exchange = ProxyExchange(self, client, forwarded, asked)
        client.exchange = exchange
        self.exchanges.add(exchange)
        if self._rated is not None and (over := self._rated.refusal(principal.name)) is not None:
            self._refuse(exchange, over)
            return
        route = self.client.cached_route(owner, job)
        if route is not None and route.up and route.record.state is State.RUNNING and route.record.endpoint:
            refused = not_allowed(principal, route)
            if refused is None:
                self._forward(exchange, route)
            else:
                self._refuse(exchange, refused)
        else:
            gevent.spawn(self._resolve, exchange, owner, job)

    def _principal(self, forwarded: Forwarded, asked: Asked | None) -> Principal | None:
        """Return who sends a request; None for somebody who has to show credentials, and has shown none that count."""
        if self._identity is None:
            return OPEN_ROUTER
        if asked is None:
            return self._identity.find(forwarded, None)
        return self._identity.find(forwarded, asked.job, own_host=asked.own_host, key=asked.key)

    def _misuse(self, forwarded: Forwarded, principal: Principal, asked: Asked) -> PRouterError | None:
        """Return why credentials that a browser adds by itself do not count for this request; None if they do."""
        if is_misused(forwarded, principal, sandboxed=asked.key is not None):
            return Forbidden(_CROSS_SITE, job=asked.job, code="cross_site")
        if self._gate is None or principal.via != "share":
            return None
        share = self._gate.share(principal.id)
        if share is None:  # it has expired at this moment
            return Unauthorized(SIGN_IN)
        if (share.read_only or asked.key is not None) and changes_something(forwarded.head):
            return read_only(asked.job, sandboxed=not share.read_only)
        return None

    def client_key(self, forwarded: Forwarded) -> str:
        """Return the key of a client's budgets (`prouter.limits.clients`)."""
        return client_key(forwarded.origin.address, forwarded.chain, self._is_trusted)

    def _match(self, forwarded: Forwarded) -> Asked | None:
        """Return what a request for a job asks for; None for one to the API."""
        head = forwarded.head
        if self.job_domain:
            # Some proxies rewrite Host and tell the client's in a forwarded field.
            for name in (head.host, forwarded.public.host):
                host = name.partition(b":")[0].lower().rstrip(b".")  # "host." is "host" as an absolute name
                if host.endswith(self.job_domain):
                    return Asked("", host[: -len(self.job_domain)].decode("latin-1"), head.target, True)
        return asked_for(head.target)

    def _resolve(self, exchange: ProxyExchange, owner: str, job: str) -> None:
        """Forward as soon as the job can be reached, or fail after ``control.hold`` seconds. Runs in a greenlet."""
        try:
            deadline = time.monotonic() + self._hold
            route = self.client.usable_route(owner, job, partial(self._obstacle_for, exchange), deadline)
        except PRouterError as error:
            if exchange.waiting:
                self._refuse(exchange, error)
            return
        except Exception:
            log.exception("event=resolve_failed job=%s", job)
            if exchange.waiting:
                exchange.fail(PRouterError("the request could not be routed: the router's log has the reason"))
            return
        if exchange.waiting:
            self._forward(exchange, route)

    def _forward(self, exchange: ProxyExchange, route: JobRoute) -> None:
        if self._audit is not None:
            self._note(self._audit, exchange, route.record.uid, None)
        principal, assertions = exchange.forwarded.principal, self.client.assertions
        if assertions is not None and principal is not None and principal is not OPEN_ROUTER:
            exchange.forwarded.identity = assertions.lines(principal, route.client, route.record.uid)
        exchange.forward(route)

    def _refuse(self, exchange: ProxyExchange, error: PRouterError) -> None:
        if self._audit is not None and error.status == Forbidden.status:
            self._note(self._audit, exchange, error.job, error.status)
        exchange.fail(error)

    def _note(self, audit: AuditLog, exchange: ProxyExchange, job: str | None, status: int | None) -> None:
        """Write a request to a job into the audit log if it begins a session, switches protocols or is refused."""
        head, forwarded, client = exchange.head, exchange.forwarded, exchange.client
        principal = forwarded.principal
        if principal is None:
            return
        address = forwarded.clients or client.origin.address
        if (
            status is None
            and not head.upgrade
            and not audit.begins_session(principal, address, job or "", client.began)
        ):
            return
        audit.write(
            "upgrade" if head.upgrade else "http",
            principal=principal,
            address=client.origin.address,
            forwarded_for=forwarded.clients,
            method=head.method.decode("ascii"),
            path=exchange.asked.shown,
            job=job,
            status=status,
            request=request_id(head.headers),
        )

    def _obstacle_for(self, exchange: ProxyExchange, route: JobRoute) -> PRouterError | None:
        if not exchange.waiting:
            raise PRouterError("the client disconnected")  # nobody is left to wait
        return not_allowed(exchange.forwarded.principal, route) or obstacle(route)

    def explain(self, exchange: ExplainedExchange, detail: str, patience: float, *, reached: bool) -> None:
        """Fail an exchange whose stream ended, after a moment in which the news may arrive that its job has ended.

        Args:
            detail: what happened to the stream.
            patience: seconds to wait.
            reached: whether the job may have read the request.
        """
        gevent.spawn(self._explain, exchange, detail, patience, reached)

    def _explain(self, exchange: ExplainedExchange, detail: str, patience: float, reached: bool) -> None:
        route = exchange.route
        if route is not None and not route.record.ended:
            self._wait_for_end(route, time.monotonic() + patience)
        if route is not None and not route.record.ended and exchange.waiting:
            exchange.route = self._checked(route)
        exchange.fail_with_reason(detail, reached=reached)

    def _checked(self, route: JobRoute) -> JobRoute:
        """Return the route as the broker knows it: this worker may be behind, or have lost the broker meanwhile."""
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
