"""Links to routers: those this agent dials (``client.*``) and those that dial it (``server.*``).

A `RouterLink` is the conversation with one router; it outlives its paths, so that calls and streams go on when a path
is back. All routers that are dialled hear of the same jobs under the same paths, and so do all that dial in: a job is
announced where its connection is the link's.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from prouter.agent.jobs.usage_reports import Usage
from prouter.agent.links.server import Listener
from prouter.errors import ProtocolError
from prouter.fabric.calls import Request
from prouter.fabric.parts import in_parts
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord
from prouter.transport.backoff import Backoff
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer

__all__ = ["CLIENT", "SERVER", "Host", "Links", "RouterLink"]

log = logging.getLogger("prouter.agent.links.links")

SERVER = "SERVER"
"""Mode of a connection, as the router sees it: the agent dialled in."""
CLIENT = "CLIENT"
"""The router dialled the agent."""

_LONGEST_UID = 64
"""Characters of a worker's uid; it has 32."""
_TROUBLES = 16
"""Reasons of failure that are logged before the next link."""


class Host(Protocol):
    """Whose links they are. All but `carry_out` are called on the loop and must not block."""

    def hello(self) -> dict[str, Any]:
        """The introduction, without a token; its ``incarnation`` is what connection uids are made from."""

    def records(self) -> list[JobRecord]:
        """All jobs."""

    def link_up(self, link: RouterLink) -> None:
        """A router is linked."""

    def link_down(self, link: RouterLink, reason: str) -> None:
        """It is away."""

    def link_failed(self, link: RouterLink, reason: str, *, refused: bool) -> None:
        """An attempt to link ended without success."""

    def carry_out(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a router's call, in a greenlet of its own; raises `PRouterError`."""

    def open_stream(self, stream: Stream, target: dict[str, Any]) -> None:
        """A worker opened a stream."""


class RouterLink:
    """The conversation with one router; the delegate of its `Peer`.

    Attributes:
        mode: `SERVER` or `CLIENT`.
        address: that is dialled; empty for a router that dialled in.
        connection: uid of the connection; jobs with this uid are announced here.
        up: whether the router is linked now.
        since: when it was linked first, seconds since the epoch, or None.
        router: what the router says of itself: uid, name, platform.
    """

    def __init__(self, host: Host, mode: str, address: str, connection: str, resume_timeout: float) -> None:
        self.mode = mode
        self.address = address
        self.connection = connection
        self.up = False
        self.since: float | None = None
        self.router: dict[str, Any] = {}
        self.peer = Peer(
            self, accepts_streams=True, resume_timeout=resume_timeout, process=str(host.hello()["process"])
        )
        self.dialler: Dialler | None = None
        self._host = host
        self._failure = ""
        self._troubles: dict[str, None] = {}
        """Why there was no connection since the last link, the newest reason last."""

    def describe(self) -> dict[str, Any]:
        """The link as the control API lists it."""
        facts = {"auth": {"uid": self.router.get("uid"), "name": self.router.get("name")}}
        peer = {**facts, "platform": self.router.get("platform") or {}, "properties": {}}
        return {"uid": self.connection, "mode": self.mode, "address": self.address, "up": self.up, "peer": peer}

    @property
    def shown(self) -> str:
        """The router, for logs."""
        return str(self.router.get("uid") or self.address or "unknown")

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with this link."""
        return not self.peer.ready and not any(mux.streams for mux in self.peer.muxes.values())

    def tell_job(self, record: JobRecord, name: str = "job") -> None:
        """A job changed, or was removed."""
        if self.up and record.connection == self.connection:
            self.peer.notify(name, {"record": record.to_wire()})

    def tell_usage(self, connection: str, usages: list[Usage]) -> None:
        """What some running jobs use now."""
        if self.up and connection == self.connection:
            self.peer.notify("usage", {"jobs": usages})

    def close(self, reason: str) -> None:
        """End all streams and say goodbye."""
        self.up = False
        for mux in self.peer.muxes.values():
            for stream in list(mux.streams.values()):
                stream.reset("agent_gone", reason)
        if self.dialler is not None:
            self.dialler.stop(reason)
        else:
            self.peer.goodbye(reason)

    # -- what the peer says (PeerDelegate) ----------------------------------------------------------------------

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """A router dialled in; its token was checked before its path was attached. The ``linked`` event follows."""
        self.up = False
        self.router = {"uid": body.get("uid"), "name": body.get("name"), "platform": body.get("platform") or {}}
        peer.welcome(self._host.hello())

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """A dialled router accepted."""
        router = body.get("router")
        self.router = router if isinstance(router, dict) else {}
        self.connection = str(body.get("connection") or self.connection)
        if self.dialler is not None:
            self.dialler.succeeded()
        self._established()

    def _established(self) -> None:
        self.up = True
        self._failure = ""
        self._troubles.clear()
        self.since = self.since or time.time()
        records = [record.to_wire() for record in self._host.records() if record.connection == self.connection]
        for part, last in in_parts(records):
            self.peer.notify("jobs", {"jobs": part, "complete": last})
        log.info(
            "event=link_up link=%s router=%s mode=%s jobs=%d", self.connection, self.shown, self.mode, len(records)
        )
        self._host.link_up(self)

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        """A dialled router does not want this agent (now)."""
        advice = "; client.token must be one of the router's server.accept_tokens" if code == "bad_token" else ""
        self._failed(f"refused: {text or code} ({code}){advice}", refused=True)

    def on_lost(self, peer: Peer, reason: str) -> None:
        """The path is gone, or none came about."""
        if not self.up:
            self._failed(next(reversed(self._troubles), reason), refused=False)
            return
        self.up = False
        log.warning("event=link_down link=%s router=%s reason=%r", self.connection, self.shown, reason)
        self._host.link_down(self, reason)
        if self.dialler is not None:
            self.dialler.lost()

    def troubled(self, reason: str) -> None:
        """There is no connection to the router that is dialled; each reason is logged once until it is linked."""
        if self.up:
            return
        known = reason in self._troubles
        self._troubles.pop(reason, None)
        self._troubles[reason] = None
        if not known and len(self._troubles) <= _TROUBLES:
            log.warning("event=link_failed router=%s reason=%r", self.address, reason)
        self._failure = reason

    def _failed(self, reason: str, *, refused: bool) -> None:
        if self.dialler is not None:
            level = logging.DEBUG if reason == self._failure else logging.WARNING
            log.log(level, "event=link_failed router=%s reason=%r", self.address, reason)
            self.dialler.lost()
        self._failure = reason
        self._host.link_failed(self, reason, refused=refused)

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """Workers come and go; a router that dialled in says when it has taken the link.

        Raises:
            ProtocolError: it is malformed.
        """
        if name == "workers":
            workers = body.get("workers", [])
            if not isinstance(workers, list):
                raise ProtocolError("workers must be a list")
            present = {_route(worker) for worker in workers}
            peer.keep_routes(present, "worker_gone", "the worker is gone")
            for route in present:
                peer.route_up(route)
        elif name == "worker.up":
            peer.route_up(_route(body.get("worker")))
        elif name == "worker.down":
            peer.route_gone(_route(body.get("worker")), "worker_gone", "the worker is gone")
        elif name == "linked" and self.mode == CLIENT:
            self.connection = str(body.get("connection") or self.connection)
            self._established()

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """A call of the router."""
        return self._host.carry_out(request.op, request.args)

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """A worker opened a stream."""
        self._host.open_stream(stream, target)


def _route(worker: object) -> bytes:
    """The route to a worker.

    Raises:
        ProtocolError: that is no worker's uid.
    """
    if not isinstance(worker, str) or not 0 < len(worker) <= _LONGEST_UID:
        raise ProtocolError(f"a worker's uid must be a text of at most {_LONGEST_UID} characters")
    return worker.encode()


class Links:
    """All links of an agent.

    Args:
        host: whose they are.
        heartbeat: seconds.
        resume_timeout: seconds streams wait for a lost path.
    """

    def __init__(self, host: Host, *, heartbeat: float, resume_timeout: float) -> None:
        self._host = host
        self._heartbeat = heartbeat
        self._resume_timeout = resume_timeout
        self._links: list[RouterLink] = []
        self._listener: Listener | None = None

    def __iter__(self) -> Iterator[RouterLink]:
        return iter([*self._links, *(self._listener.links if self._listener is not None else ())])

    @property
    def any_up(self) -> bool:
        """Whether any router is linked now."""
        return any(link.up for link in self)

    def dial(self, address: str, token: str, backoff: Backoff) -> None:
        """Link to the router at ``host:port``, for as long as the agent lives.

        Args:
            address: of the router.
            token: that is presented to it.
            backoff: delays between attempts; of this router alone.

        Raises:
            ValueError: `address` is none.
        """
        link = self._new(SERVER, address, "")  # The router tells: the incarnation itself stays between the two.
        link.dialler = Dialler(
            link.peer,
            f"tcp://{address}",
            identity=uuid.uuid4().hex,
            hello=lambda: {"kind": "agent", **self._host.hello(), "token": token},
            heartbeat=self._heartbeat,
            backoff=backoff,
            on_trouble=link.troubled,
        )
        self._links.append(link)
        link.dialler.start()

    def listen(self, interface: str, port: int, tokens: Sequence[str] | Mapping[str, str]) -> str:
        """Let routers link to this agent; the endpoint bound, ``tcp://HOST:PORT``.

        Raises:
            zmq.ZMQError: it cannot be bound.
        """
        incarnation = self._incarnation()
        connection = hashlib.sha256(f"{incarnation}:client".encode()).hexdigest()[:32]
        self._listener = Listener(lambda: self._new(CLIENT, "", connection), tokens, self._heartbeat, incarnation)
        return self._listener.bind(interface, port)

    def _incarnation(self) -> str:
        return str(self._host.hello()["incarnation"])

    def _new(self, mode: str, address: str, connection: str) -> RouterLink:
        return RouterLink(self._host, mode, address, connection, self._resume_timeout)

    def tell_job(self, record: JobRecord, name: str = "job") -> None:
        """A job changed, or was removed (``job.removed``): tell the routers whose it is."""
        for link in self:
            link.tell_job(record, name)

    def tell_usage(self, connection: str, usages: list[Usage]) -> None:
        """What some jobs of a connection use now: tell the router whose they are."""
        for link in self:
            link.tell_usage(connection, usages)

    def tell(self, name: str, body: dict[str, Any]) -> None:
        """An event for every router that is linked."""
        for link in self:
            if link.up:
                link.peer.notify(name, body)

    def close(self, reason: str) -> None:
        """Say goodbye to all routers, and accept none any more."""
        for link in self:
            link.close(reason)
        if self._listener is not None:
            self._listener.close()
