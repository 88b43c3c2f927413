"""A worker's connection to the broker: calls, events, streams to agents, and the cache of routes to jobs.

Each worker process has one `RouterClient`. `start` makes it after the fork, and `current` returns it.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import gevent

from prouter import __version__
from prouter.access.gate import AccessGate
from prouter.config import RouterConfig
from prouter.errors import AgentUnavailable, Overloaded, PRouterError
from prouter.fabric.calls import Request
from prouter.fabric.mux import MAX_WINDOW
from prouter.fabric.parts import in_parts
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, State
from prouter.limits.requests import RequestLimits
from prouter.transport.backoff import Backoff
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer
from prouter.web.agent_links import AgentLinks
from prouter.web.assertions import Assertions
from prouter.web.audit import AuditLog
from prouter.web.routes import JobRoute, RouteCache
from prouter.web.shared_call import SharedCall

__all__ = ["RouterClient", "current", "start"]

log = logging.getLogger("prouter.web")

_HEARTBEAT = 2.0
"""Seconds between heartbeats on the connection to the broker."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 0.2
"""Backoff, seconds: the broker is on this host and mostly restarting, and each new attempt costs it nothing."""
_MAX_CALLS = 20000
"""Calls that may wait for the broker; most are waits for a job's end."""
_FAR_FACTOR = 4
"""Initial window of a stream to an agent with a long round trip, as a multiple of ``fabric.window``."""

Subscriber = Callable[[str, dict[str, Any]], None]


class RouterClient:
    """The client of the broker.

    Args:
        config: the router's configuration.
        endpoint: the broker's ipc endpoint.

    Attributes:
        router: what the broker says about the router: its uid, name and addresses.
        router_draining: whether the router stops.
        leaving: whether this worker stops.
        on_bridge_end: called with the uid of a bridge that is to end.
        list_bridges: returns this worker's bridges.
        end_revoked_bridges: ends bridges of those whose token is not valid any more.
        gate: who may send requests to this worker; None for everybody.
        audit: the audit log; None without one.
        limits: budgets of requests; None for no limits.
        assertions: tell jobs who sends a request; None to tell them nothing.
        on_linked: called when the broker is linked again; events may have been missed.
    """

    def __init__(self, config: RouterConfig, endpoint: str) -> None:
        self.config = config
        self.uid = uuid.uuid4().hex
        self.router: dict[str, Any] = {}
        self.router_draining = False
        self.leaving = False
        self.on_bridge_end: Callable[[str], None] = lambda _uid: None
        self.list_bridges: Callable[[], list[dict[str, Any]]] = list
        self.end_revoked_bridges: Callable[[], None] = lambda: None
        self.gate: AccessGate | None = None
        self.audit = AuditLog(config.audit) if config.audit.file or config.audit.syslog else None
        self.limits: RequestLimits | None = None
        self.assertions: Assertions | None = None
        self.on_linked: Callable[[], None] = lambda: None
        self._informed = False
        """Whether the broker has sent its whole list of links."""
        self._last_loss = ""
        """Why there was no link to the broker last; empty while it is linked."""
        self._subscribers: set[Subscriber] = set()
        self._calls = 0
        self._waits: set[str] = set()
        """Ids of the calls that wait for a job's end."""
        self._patience = config.control.hold or 10.0
        """Seconds the broker has to say where a job is."""
        self._sync = SharedCall(lambda: self.call("sync", {}, timeout=self._patience))
        self._peer = Peer(self, resume_timeout=config.fabric.resume_timeout)
        self._links = AgentLinks(self._peer)
        self._routes = RouteCache(self._ask_for_route, self._links.is_up)
        self._peer.bulk.on_change = self._bulk_changed
        self._peer.streams.on_strays = self._strays
        self._dialler = Dialler(
            self._peer,
            endpoint,
            identity=self.uid,
            hello=lambda: {"kind": "worker", "uid": self.uid, "pid": os.getpid(), "version": __version__},
            heartbeat=_HEARTBEAT,
            backoff=Backoff(_FIRST_DELAY, _LONGEST_DELAY),
        )

    # -- for the API --------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the broker is linked and has said which agents are."""
        return self._peer.ready and self._informed

    @property
    def draining(self) -> bool:
        """Whether endless responses, such as a feed of events, are to end."""
        return self.router_draining or self.leaving

    def start(self) -> None:
        """Link to the broker, for as long as the process lives."""
        self._dialler.start()

    def stop(self) -> None:
        """Leave the broker."""
        self._dialler.stop("worker stops")

    def call(self, op: str, args: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Call the broker and return its reply; the call is repeated if the broker restarts. Blocks the greenlet.

        Raises:
            PRouterError: the broker's reply is an error.
            AgentUnavailable: no reply within `timeout` seconds.
            Overloaded: too many calls wait already.
        """
        if self._calls >= _MAX_CALLS:
            raise Overloaded(
                f"{_MAX_CALLS} requests wait for the broker already: send the request again", retry_after=1
            )
        self._calls += 1
        call_id = uuid.uuid4().hex if op == "jobs.wait" else None
        if call_id is not None:
            self._waits.add(call_id)
        try:
            return self._peer.call(op, args, call_id=call_id, timeout=timeout)
        except gevent.GreenletExit:
            if call_id is not None:
                self._peer.notify("wait.cancel", {"id": call_id})
            raise
        finally:
            self._calls -= 1
            if call_id is not None:
                self._waits.discard(call_id)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Pass every job and agent event to ``callback(name, body)`` until the returned function is called."""
        self._subscribers.add(callback)
        return lambda: self._subscribers.discard(callback)

    def cached_route(self, connection: str, job: str) -> JobRoute | None:
        """Return the route if it is cached. It may be older than what other workers know."""
        return self._routes.get(connection, job)

    def catch_up(self, timeout: float | None = None) -> None:
        """Wait until this worker knows everything that the broker had told any worker when this was called.

        The broker's replies and events arrive in order, so once it has replied to a call, everything it said before is
        known here. This is to be called before a request is refused because of what is cached: another worker, which
        heard of a change earlier, may have told the client already. Simultaneous requests share a call, so
        that refusals cost the broker little.

        Args:
            timeout: seconds; ``control.hold`` by default.

        Raises:
            AgentUnavailable: the broker does not reply in time.
        """
        self._sync.get(self._patience if timeout is None else timeout)

    def checked_route(self, connection: str, job: str) -> JobRoute:
        """Return the route as the broker knows it now. Blocks the greenlet.

        Raises:
            PRouterError: no such connection or job; the broker does not reply in time.
        """
        known = self._routes.get(connection, job)
        if known is not None and known.record.state is State.NEW:  # Another router may have started it.
            self.call("sync", {"connection": known.connection}, timeout=self._patience)
        elif known is not None:
            self.catch_up()
        return self.route(connection, job)

    def usable_route(
        self, connection: str, job: str, obstacle: Callable[[JobRoute], PRouterError | None], deadline: float = 0.0
    ) -> JobRoute:
        """Return a route without an obstacle. The cache may show that there is none; only the broker may show one.

        Args:
            obstacle: returns why a route cannot be used, None if it can; an error with status 503 may pass by itself.
            deadline: monotonic time until which to wait for obstacles that may pass.

        Raises:
            NotFound: no such connection or job.
            PRouterError: the obstacle.
        """
        while True:
            route = self.route(connection, job)
            found = obstacle(route)
            if found is not None and (found.status != 503 or time.monotonic() >= deadline):
                route = self.checked_route(connection, job)
                found = obstacle(route)
                if found is not None and (found.status != 503 or time.monotonic() >= deadline):
                    raise found
            if found is None:
                return route
            route.wait_for_change(deadline)

    def is_up(self, connection: str) -> bool:
        """Return whether the agent behind `connection` takes new streams."""
        return self._links.is_up(connection)

    def route(self, connection: str, job: str) -> JobRoute:
        """Return the route, which may be old if it is cached. Blocks the greenlet if it is not.

        Raises:
            NotFound: no such connection or job.
        """
        return self._routes.find(connection, job)

    def _ask_for_route(self, connection: str, job: str) -> JobRecord:
        reply = self.call("jobs.route", {"connection": connection, "job": job}, timeout=self._patience)
        return JobRecord.from_wire(reply["record"])

    def open_stream(self, connection: str, target: dict[str, Any], *, window: int | None = None) -> Stream:
        """Open a stream to the agent behind `connection`, with a larger window if its round trip is long.

        Args:
            connection: uid of the agent's connection.
            target: what the agent is to connect the stream to.
            window: limit of the bytes in flight; ``fabric.window`` by default.

        Raises:
            AgentUnavailable: the agent is not linked.
        """
        if connection not in self._links:
            raise AgentUnavailable(f"the agent of connection '{connection}' is away", retry_after=1)
        most = self.config.fabric.window
        if self._links.is_far(connection):
            most = min(_FAR_FACTOR * most, MAX_WINDOW)
        return self._peer.mux(connection.encode("ascii")).open(target, min(window or most, most))

    def bridges_changed(self) -> None:
        """Tell the broker which WebSocket bridges this worker has now."""
        first = True
        for part, _last in in_parts(self.list_bridges()):
            self._peer.notify("bridges", {"bridges": part, "first": first})
            first = False

    def tell_bridges(self) -> None:
        """Tell the broker of this worker's bridges and wait until all workers list them. Blocks the greenlet.

        Raises:
            AgentUnavailable: the broker does not reply in time; it learns of the bridges when it is back.
        """
        self.bridges_changed()
        self.catch_up()

    def _strays(self, route: bytes, frames: int) -> None:
        """Report an agent that floods this worker with frames of unknown streams: the broker drops its link."""
        self._peer.notify("strays", {"connection": route.decode("ascii"), "frames": frames})

    def _bulk_changed(self, count: int) -> None:
        """Tell the broker how many bulk streams this worker has; the other workers share windows with them."""
        self._peer.notify("bulk", {"streams": count})

    def stats(self) -> dict[str, int]:
        """Return figures for metrics."""
        return {
            "streams": sum(len(mux.streams) for mux in self._peer.muxes.values()),
            "streams_fast": len(self._peer.bulk),
            "streams_fast_elsewhere": self._peer.bulk.elsewhere,
            "calls_pending": self._calls,
            "routes_cached": len(self._routes),
        }

    # -- events of the broker (PeerDelegate) --------------------------------------------------------------------

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Handle the broker's welcome; its list of links follows."""
        self.router = body.get("router", {})
        self.router_draining = bool(body.get("draining"))
        self._dialler.succeeded()
        self._last_loss = ""
        self._links.expect_list()
        peer.notify("waits", {"ids": list(self._waits)})
        self.bridges_changed()
        peer.bulk.elsewhere = 0
        self._bulk_changed(len(peer.bulk))

    def _links_listed(self, body: dict[str, Any]) -> None:
        """Handle a part of the list of links; after the last one, cached routes may be old."""
        if not self._links.take_list(body):
            return
        self._informed = True
        for route in self._routes.clear():
            if route.waiters:
                gevent.spawn(self._refresh, route)
        self.on_linked()
        log.info("event=broker_linked worker=%s links=%d", self.uid, len(self._links))

    def on_lost(self, peer: Peer, reason: str) -> None:
        """Handle the loss of the broker; streams and calls wait. A repeated reason is not logged again."""
        self._informed = False
        level = logging.DEBUG if reason == self._last_loss else logging.WARNING
        self._last_loss = reason
        log.log(level, "event=broker_lost worker=%s reason=%r", self.uid, reason)
        self._dialler.lost()

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        """Handle the broker's refusal, which may pass: try again later."""
        log.error("event=broker_refused worker=%s code=%s text=%r", self.uid, code, text)
        self._dialler.lost()

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Do nothing: workers dial, so nobody greets them."""

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Refuse a call: the broker calls nothing on workers."""
        raise PRouterError(f"workers do not know the call '{request.op}'", code="unknown_call")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """Refuse a stream: agents open none to workers."""
        stream.reset("not_accepted", "workers accept no streams")

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """Apply an event to links and cached routes, then pass it to the subscribers."""
        if name == "link.up":
            self._links.linked(body)
            self._routes.link_changed(body["connection"], True)
        elif name == "link.distance":
            self._links.measured(body["connection"], far=bool(body["far"]))
        elif name == "links":
            self._links_listed(body)
        elif name == "links.complete":
            self._links.drop_others()
        elif name == "link.down":
            self._links.down(body)
            self._routes.link_changed(body["connection"], False)
        elif name in ("job", "job.removed"):
            self._routes.job_changed(JobRecord.from_wire(body["record"]))
        elif name == "draining":
            self.router_draining = True
        elif name == "bulk":
            peer.bulk.elsewhere = int(body["elsewhere"])
        elif name == "bridge.end":
            self.on_bridge_end(str(body["uid"]))
        if name in ("job", "job.removed", "agent"):
            for subscriber in list(self._subscribers):
                subscriber(name, body)

    def _refresh(self, route: JobRoute) -> None:
        """Update a route that left the cache while somebody waits for its change. Runs in a greenlet."""
        try:
            fresh = self.route(route.connection, route.record.uid)
        except PRouterError as error:
            log.info("event=route_refresh_failed job=%s error=%r", route.record.uid, error.detail)
            return
        route.record, route.up = fresh.record, fresh.up
        fresh.waiters |= route.waiters
        route.changed()


_current: RouterClient | None = None


def start(config: RouterConfig, endpoint: str) -> RouterClient:
    """Make this process's client and wait up to 5 s for the broker, so that the first requests find it."""
    global _current
    client = _current = RouterClient(config, endpoint)
    client.start()
    deadline = time.monotonic() + 5
    while not client.ready and time.monotonic() < deadline:
        gevent.sleep(0.01)
    return client


def current() -> RouterClient:
    """Return this process's client.

    Raises:
        RuntimeError: `start` was not called in this process.
    """
    if _current is None:
        raise RuntimeError("this process has no router client: only a gunicorn worker starts one")
    return _current
