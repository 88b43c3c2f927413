"""A worker's connection to the broker: calls, events, streams, and a fresh cache of where jobs are.

One `RouterClient` per worker process, made after the fork by `start`; `current` finds it again.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import gevent
from gevent.event import Event

from prouter import __version__
from prouter.config import RouterConfig
from prouter.errors import AgentUnavailable, Overloaded, PRouterError
from prouter.fabric.calls import Request
from prouter.fabric.mux import MAX_WINDOW
from prouter.fabric.parts import in_parts
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord
from prouter.transport.backoff import Backoff
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer
from prouter.web.joined import Joined

__all__ = ["JobRoute", "RouterClient", "current", "start"]

log = logging.getLogger("prouter.web")

_HEARTBEAT = 2.0
"""Seconds between signs of life on the ipc path to the broker."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 0.2
"""Backoff, seconds: the broker is on this host and mostly restarting, and each new attempt costs it nothing."""
_MAX_ROUTES = 65536
"""Job routes cached per worker."""
_MAX_CALLS = 20000
"""Calls waiting for the broker per worker; parked waits are most of them."""

_LONG = 4
"""How many times ``fabric.window`` streams begin with to agents that take long to reach."""

Subscriber = Callable[[str, dict[str, Any]], None]


class JobRoute:
    """Where a job is, kept fresh by the broker's events while it is cached.

    Attributes:
        connection: uid of the agent's connection.
        record: the job's newest known record.
        up: whether its agent is reachable.
        prefix: the job's public prefix as bytes, ``/jobs/<connection>/<job>/http``.
    """

    __slots__ = ("connection", "prefix", "record", "up", "waiters")

    def __init__(self, connection: str, record: JobRecord, up: bool) -> None:
        self.connection = connection
        self.record = record
        self.up = up
        self.prefix = f"/jobs/{connection}/{record.uid}/http".encode("ascii")
        self.waiters: set[Callable[[], None]] = set()

    def changed(self) -> None:
        """Wake whoever waits for the job to become reachable."""
        for waiter in list(self.waiters):
            waiter()

    def wait_for_news(self, deadline: float) -> None:
        """Block the greenlet until something changed, for a second at most: another object may hold the route then.

        Args:
            deadline: time (monotonic) until which to wait at most.
        """
        changed = Event()
        self.waiters.add(changed.set)
        try:
            changed.wait(max(0.0, min(deadline - time.monotonic(), 1.0)))
        finally:
            self.waiters.discard(changed.set)


class RouterClient:
    """See the module's docstring.

    Args:
        config: the router's configuration.
        endpoint: the broker's ipc endpoint.
    """

    def __init__(self, config: RouterConfig, endpoint: str) -> None:
        self.config = config
        self.uid = uuid.uuid4().hex
        self.router: dict[str, Any] = {}
        self.router_draining = False
        """Whether the router winds down."""
        self.leaving = False
        """Whether this worker does."""
        self.on_bridge_end: Callable[[str], None] = lambda _uid: None
        self.list_bridges: Callable[[], list[dict[str, Any]]] = list
        self.on_linked: Callable[[], None] = lambda: None
        """Called when the broker is linked again: news may have been missed."""
        self._routes: OrderedDict[tuple[str, str], JobRoute] = OrderedDict()
        self._links: dict[str, bool] = {}
        """Connections of agents, and whether they are up."""
        self._arriving: list[dict[str, Any]] = []
        """Links told since the last welcome, until all are."""
        self._informed = False
        self._last_loss = ""
        """Why there was no link to the broker last; empty while it is linked."""
        self._processes: dict[str, str] = {}
        """The agents' processes that were there last."""
        self._far: set[str] = set()
        """Those that take long to reach."""
        self._asked: Counter[str] = Counter()
        """Jobs whose routes are being asked for."""
        self._news: dict[str, JobRecord] = {}
        """What was told of those jobs meanwhile."""
        self._subscribers: set[Subscriber] = set()
        self._calls = 0
        self._waits: set[str] = set()
        """Ids of the calls that wait for a job."""
        self._patience = config.control.hold or 10.0
        """Seconds that the broker has to say where a job is."""
        self._sync = Joined(lambda: self.call("sync", {}, timeout=self._patience))
        self._peer = Peer(self, resume_timeout=config.fabric.resume_timeout)
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
        """Whether the broker is linked now, and has told which agents are."""
        return self._peer.ready and self._informed

    @property
    def draining(self) -> bool:
        """Whether what lasts for ever, such as a feed of events, is to end."""
        return self.router_draining or self.leaving

    def start(self) -> None:
        """Link to the broker, for as long as the process lives."""
        self._dialler.start()

    def stop(self) -> None:
        """Say goodbye to the broker."""
        self._dialler.stop("worker stops")

    def call(self, op: str, args: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Ask the broker and wait; a broker that restarts meanwhile is asked again. Blocks the greenlet.

        Raises:
            PRouterError: the broker's answer.
            AgentUnavailable: no answer within `timeout` seconds.
            Overloaded: too many calls wait already.
        """
        if self._calls >= _MAX_CALLS:
            raise Overloaded("too many requests wait for the broker", retry_after=1)
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
        """Get every job and agent event as ``callback(name, body)``; the function returned ends it."""
        self._subscribers.add(callback)
        return lambda: self._subscribers.discard(callback)

    def cached_route(self, connection: str, job: str) -> JobRoute | None:
        """The route if it is known already; never blocks. It may be behind what other workers know."""
        return self._routes.get((connection, job))

    def catch_up(self, timeout: float | None = None) -> None:
        """Wait until this worker knows everything that the broker had told anybody when this was called.

        Replies and events of the broker come in order, so everything it said before is known here once it has answered
        a call. To be used before a request is refused because of what is cached: another worker, which heard of a
        change earlier, may have told the client already. Requests that come at once share a call (`Joined`), so that
        clients that are refused often cost the broker little.

        Args:
            timeout: seconds; ``control.hold`` by default.

        Raises:
            AgentUnavailable: the broker does not answer in time.
        """
        self._sync.get(self._patience if timeout is None else timeout)

    def checked_route(self, connection: str, job: str) -> JobRoute:
        """The job's route as the broker knows it now. Blocks the greenlet.

        Raises:
            NotFound: no such connection or job.
            AgentUnavailable: the broker does not answer in time.
        """
        if (connection, job) in self._routes:
            self.catch_up()
        return self.route(connection, job)

    def usable_route(
        self, connection: str, job: str, obstacle: Callable[[JobRoute], PRouterError | None], deadline: float = 0.0
    ) -> JobRoute:
        """A route without an obstacle, which what is cached may promise, but only the broker may deny.

        Args:
            obstacle: why a route is of no use, None if it is of use; one with the status 503 may pass.
            deadline: time (monotonic) until which obstacles that may pass are waited for.

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
            route.wait_for_news(deadline)

    def route(self, connection: str, job: str) -> JobRoute:
        """The job's route, which may be behind when it is cached. Blocks the greenlet when it is not.

        Raises:
            NotFound: no such connection or job.
        """
        known = self._routes.get((connection, job))
        if known is not None:
            return known
        self._asked[job] += 1
        try:
            args = {"connection": connection, "job": job}
            answer = self.call("jobs.route", args, timeout=self._patience)
            record = JobRecord.from_wire(answer["record"])
            news = self._news.get(job)
        finally:
            self._asked[job] -= 1
            if not self._asked[job]:
                del self._asked[job]
                self._news.pop(job, None)
        known = self._routes.get((connection, job))
        if known is not None:
            return known  # Another request asked at the same time; all must watch one object.
        if news is not None and news.revision >= record.revision:
            record = news  # It changed between the broker's answer and this greenlet's turn.
        route = JobRoute(record.connection, record, self._links.get(record.connection, False))
        self._routes[(connection, job)] = route
        if len(self._routes) > _MAX_ROUTES:
            self._routes.popitem(last=False)
        return route

    def open_stream(self, connection: str, target: dict[str, Any], *, window: int | None = None) -> Stream:
        """A new stream to the agent behind `connection`; over a long way more is in flight to begin with.

        Args:
            window: most bytes in flight, if that is to be less.

        Raises:
            AgentUnavailable: that connection is not known to be up.
        """
        if connection not in self._links:
            raise AgentUnavailable(f"the agent of connection '{connection}' is away", retry_after=1)
        most = self.config.fabric.window
        if connection in self._far:
            most = min(_LONG * most, MAX_WINDOW)
        return self._peer.mux(connection.encode("ascii")).open(target, min(window or most, most))

    def bridges_changed(self) -> None:
        """Tell the broker which WebSocket bridges this worker has now."""
        first = True
        for part, _last in in_parts(self.list_bridges()):
            self._peer.notify("bridges", {"bridges": part, "first": first})
            first = False

    def tell_bridges(self) -> None:
        """The same, and wait until all workers list them. Blocks the greenlet.

        Raises:
            AgentUnavailable: the broker does not answer in time; it is told when it is back.
        """
        self.bridges_changed()
        self.catch_up()

    def _strays(self, route: bytes, frames: int) -> None:
        """An agent keeps this worker busy with frames of no use: the broker is to give up its path."""
        self._peer.notify("strays", {"connection": route.decode("ascii"), "frames": frames})

    def _bulk_changed(self, count: int) -> None:
        """Tell the broker how many fast streams this worker has, for the others."""
        self._peer.notify("bulk", {"streams": count})

    def stats(self) -> dict[str, int]:
        """Figures for metrics."""
        return {
            "streams": sum(len(mux.streams) for mux in self._peer.muxes.values()),
            "streams_fast": len(self._peer.bulk),
            "streams_fast_elsewhere": self._peer.bulk.elsewhere,
            "calls_pending": self._calls,
            "routes_cached": len(self._routes),
        }

    # -- what the broker says (PeerDelegate) --------------------------------------------------------------------

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Welcomed; the links as they are now follow."""
        self.router = body.get("router", {})
        self.router_draining = bool(body.get("draining"))
        self._dialler.succeeded()
        self._last_loss = ""
        self._arriving.clear()
        peer.notify("waits", {"ids": list(self._waits)})
        self.bridges_changed()
        peer.bulk.elsewhere = 0
        self._bulk_changed(len(peer.bulk))

    def _links_told(self, body: dict[str, Any]) -> None:
        """A part of the links as they are; after the last of them cached routes may be old news."""
        self._arriving += body["links"]
        if not body["last"]:
            return
        links, self._arriving = self._arriving, []
        stale, self._routes = self._routes, OrderedDict()
        self._links = {link["connection"]: bool(link["up"]) for link in links}
        for link in links:
            self._meet(link)
        for connection, up in self._links.items():
            if up:
                self._peer.route_up(connection.encode("ascii"), self._processes[connection])
        if body["complete"]:
            self._others_are_gone(self._links)
        self._informed = True
        for route in stale.values():
            if route.waiters:
                gevent.spawn(self._refresh, route)
        self.on_linked()
        log.info("event=broker_linked worker=%s links=%d", self.uid, len(self._links))

    def on_lost(self, peer: Peer, reason: str) -> None:
        """The broker is away; streams and calls wait for it. Each reason is logged once until it is back."""
        self._informed = False
        level = logging.DEBUG if reason == self._last_loss else logging.WARNING
        self._last_loss = reason
        log.log(level, "event=broker_lost worker=%s reason=%r", self.uid, reason)
        self._dialler.lost()

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        """The broker does not want this worker (now)."""
        log.error("event=broker_refused worker=%s code=%s text=%r", self.uid, code, text)
        self._dialler.lost()

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Never: workers dial."""

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Brokers call nothing on workers."""
        raise PRouterError(f"workers do not know the call '{request.op}'", code="unknown_call")

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """Agents open no streams."""
        stream.reset("not_accepted", "workers accept no streams")

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """Keep links and cached routes fresh, then tell the subscribers."""
        if name == "link.up":
            self._meet(body)
            self._link_changed(body["connection"], up=True, gone=False)
        elif name == "link.distance":
            self._distance(body["connection"], far=bool(body["far"]))
        elif name == "links":
            self._links_told(body)
        elif name == "links.complete":
            self._others_are_gone(self._links)
        elif name == "link.down":
            self._link_changed(body["connection"], up=False, gone=bool(body.get("gone")))
        elif name in ("job", "job.removed"):
            self._job_changed(JobRecord.from_wire(body["record"]))
        elif name == "draining":
            self.router_draining = True
        elif name == "bulk":
            peer.bulk.elsewhere = int(body["elsewhere"])
        elif name == "bridge.end":
            self.on_bridge_end(str(body["uid"]))
        if name in ("job", "job.removed", "agent"):
            for subscriber in list(self._subscribers):
                subscriber(name, body)

    def _others_are_gone(self, connections: Collection[str]) -> None:
        """The broker knows no other agents: what links went while it could not tell, or before it started, is gone."""
        present = {connection.encode("ascii") for connection in connections}
        self._far.intersection_update(connections)
        self._processes = {key: process for key, process in self._processes.items() if key in connections}
        self._peer.keep_routes(present, "agent_gone", "the agent is gone")

    def _meet(self, link: dict[str, Any]) -> None:
        """Streams with an agent that was restarted are over. Opened again they would bring requests to jobs twice."""
        connection, process = str(link["connection"]), str(link.get("process") or "")
        if link["up"] and self._processes.setdefault(connection, process) != process:
            self._processes[connection] = process
            self._peer.route_gone(connection.encode("ascii"), "agent_gone", "the agent was restarted")
        self._distance(connection, far=bool(link.get("far")))

    def _distance(self, connection: str, *, far: bool) -> None:
        if far:
            self._far.add(connection)
        else:
            self._far.discard(connection)

    def _link_changed(self, connection: str, *, up: bool, gone: bool) -> None:
        key = connection.encode("ascii")
        if gone:
            self._links.pop(connection, None)
            self._far.discard(connection)
            self._processes.pop(connection, None)
            self._peer.route_gone(key, "agent_gone", "the agent is gone")
        elif up:
            self._links[connection] = True
            self._peer.route_up(key, self._processes[connection])
        else:
            self._links[connection] = False
            self._peer.route_down(key)
        for route in self._routes.values():
            if route.connection == connection:
                route.up = up
                route.changed()

    def _job_changed(self, record: JobRecord) -> None:
        if record.uid in self._asked:
            self._news[record.uid] = record
        for key in ((record.connection, record.uid), ("", record.uid)):
            route = self._routes.get(key)
            if route is not None:  # The broker tells every change in order, also one to a lower revision.
                route.record = record
                route.changed()

    def _refresh(self, route: JobRoute) -> None:
        """Bring an object someone waits on up to date after the broker was away."""
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
    """Make this process's client and link it; waits a moment for the broker so that first requests find it."""
    global _current
    client = _current = RouterClient(config, endpoint)
    client.start()
    deadline = time.monotonic() + 5
    while not client.ready and time.monotonic() < deadline:
        gevent.sleep(0.01)
    return client


def current() -> RouterClient:
    """This process's client.

    Raises:
        RuntimeError: `start` was not called in this process.
    """
    if _current is None:
        raise RuntimeError("no router client in this process; it is started by the gunicorn worker")
    return _current
