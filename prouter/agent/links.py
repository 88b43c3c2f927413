"""The agent's links to routers: those it dials, and those that dial it.

Every router is told of the same jobs under the same paths. What a link carries outlives the paths it runs over: a
router that comes back over a new path finds its calls remembered and its streams waiting.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterator
from typing import Any, Protocol

import gevent
import zmq

from prouter.config import AgentConfig
from prouter.errors import ProtocolError
from prouter.fabric.calls import Request
from prouter.fabric.frames import HELLO, VERSION, decode, encode
from prouter.fabric.session import Greeted, Session
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer
from prouter.transport.sockets import WatchedSocket

__all__ = ["Agent", "Links", "RouterLink"]

log = logging.getLogger("prouter.agent")

_ANNOUNCED_AT_ONCE = 500
"""Jobs in one message of an announcement."""
_MAX_MESSAGE = 64 * 1024 * 1024
_MAX_ROUTERS = 64
"""Routers that may be linked by dialling in, those still introducing themselves included."""
_TICK = 0.5


class Agent(Protocol):
    """What a link needs of the agent."""

    def introduce(self) -> dict[str, Any]:
        """What the agent tells of itself, without a token."""

    def records(self) -> list[JobRecord]:
        """All jobs."""

    def load(self) -> dict[str, Any]:
        """How busy it is."""

    def call(self, request: Request) -> dict[str, Any]:
        """Carry out a router's call."""

    def open_stream(self, stream: Stream, target: dict[str, Any]) -> None:
        """Connect a stream that a worker opened."""

    def linked(self) -> None:
        """A link is up."""

    def refused(self, code: str, text: str) -> None:
        """A router does not want this agent."""


class RouterLink:
    """One router, whichever side dials; see `PeerDelegate`."""

    def __init__(self, agent: Agent, config: AgentConfig, mode: str) -> None:
        self.mode = mode
        self.address = ""
        self.connection = ""
        self.router: dict[str, Any] = {}
        self.since = 0.0
        self.dialler: Dialler | None = None
        self._agent = agent
        self.peer = Peer(self, accepts_streams=True, resume_timeout=config.fabric.resume_timeout)

    @property
    def up(self) -> bool:
        """Whether the router is reachable."""
        return self.peer.ready

    def announce(self) -> None:
        """Tell the router all jobs and the agent's load."""
        wires = [record.to_wire() for record in self._agent.records()]
        for start in range(0, len(wires) or 1, _ANNOUNCED_AT_ONCE):
            part = wires[start : start + _ANNOUNCED_AT_ONCE]
            self.peer.notify("jobs", {"jobs": part, "complete": start + _ANNOUNCED_AT_ONCE >= len(wires)})
        self.peer.notify("load", self._agent.load())

    def _came_up(self, router: dict[str, Any], connection: str) -> None:
        self.router, self.connection, self.since = router, connection, time.time()
        if self.dialler is not None:
            self.dialler.succeeded()
        log.info("event=link_up link=%s router=%s mode=%s", connection, router.get("uid"), self.mode)
        self.announce()
        self._agent.linked()

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        router = body.get("router")
        self._came_up(router if isinstance(router, dict) else {}, str(body.get("connection")))

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Introductions are looked at before a path is attached."""

    def on_refused(self, peer: Peer, code: str, text: str) -> None:
        log.error("event=link_refused router=%s code=%s text=%r", self.address, code, text)
        if self.dialler is not None:
            self.dialler.lost()
        self._agent.refused(code, text)

    def on_lost(self, peer: Peer, reason: str) -> None:
        log.warning("event=link_lost link=%s router=%s reason=%r", self.connection, self.address, reason)
        if self.dialler is not None:
            self.dialler.lost()

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        if name == "workers":
            present = {str(uid).encode() for uid in body.get("workers", [])}
            for route in [route for route in peer.muxes if route not in present]:
                peer.route_gone(route, "worker_gone", "the worker is gone")
            for route in present:
                peer.route_up(route)
        elif name == "worker.up":
            peer.route_up(str(body.get("worker")).encode())
        elif name == "worker.down":
            peer.route_gone(str(body.get("worker")).encode(), "worker_gone", "the worker is gone")
        elif name == "linked":
            self._came_up(self.router, str(body.get("connection")))

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        return self._agent.call(request)

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        self._agent.open_stream(stream, target)

    def describe(self) -> dict[str, Any]:
        """The link as the local API lists it."""
        return {
            "uid": self.connection,
            "mode": self.mode,
            "address": self.address,
            "up": self.up,
            "peer": {"auth": {"uid": self.router.get("uid"), "name": self.router.get("name")},
                     "platform": self.router.get("platform", {}), "properties": {}},
        }  # fmt: skip


class Links:
    """All links of an agent.

    Args:
        agent: whose links they are.
        config: which routers to dial, and where to listen.
        uid: the agent's uid.
    """

    def __init__(self, agent: Agent, config: AgentConfig, uid: str) -> None:
        self._agent = agent
        self._config = config
        self._uid = uid
        self._dialled: list[RouterLink] = []
        self._listening: dict[str, RouterLink] = {}
        self._by_path: dict[bytes, RouterLink] = {}
        self._socket: WatchedSocket | None = None
        self._ticker: gevent.Greenlet[..., None] | None = None
        self._malformed = 0

    def __iter__(self) -> Iterator[RouterLink]:
        yield from self._dialled
        yield from self._listening.values()

    @property
    def up(self) -> bool:
        """Whether any router is reachable."""
        return any(link.up for link in self)

    def open(self) -> str | None:
        """Begin to dial and to listen; the endpoint listened on, if any."""
        endpoint = self._listen() if self._config.server.enabled else None
        if self._config.client.enabled:
            given = self._config.client.address
            for address in [given] if isinstance(given, str) else given:
                self._dial(address)
        return endpoint

    def tell(self, name: str, body: dict[str, Any]) -> None:
        """Send an event to every router that is reachable; the others hear of it when they are back."""
        for link in self:
            link.peer.notify(name, body)

    def close(self, reason: str) -> None:
        """Say goodbye to all."""
        for link in self._dialled:
            if link.dialler is not None:
                link.dialler.stop(reason)
        for link in self._listening.values():
            link.peer.goodbye(reason)
        if self._ticker is not None:
            self._ticker.kill(block=False)
        if self._socket is not None:
            self._socket.close(linger=0.2)

    # -- dialling -----------------------------------------------------------------------------------------------

    def _dial(self, address: str) -> None:
        link = RouterLink(self._agent, self._config, "CLIENT")
        link.address = address
        client = self._config.client
        link.dialler = Dialler(
            link.peer,
            f"tcp://{address}",
            identity=self._uid,
            hello=lambda: {"kind": "agent", "token": client.token, **self._agent.introduce()},
            heartbeat=self._config.fabric.heartbeat,
            delay=min(client.reconnect_delay, 0.2),
            max_delay=client.reconnect_delay,
        )
        self._dialled.append(link)
        link.dialler.start()

    # -- listening ----------------------------------------------------------------------------------------------

    def _listen(self) -> str:
        server = self._config.server
        socket = self._socket = WatchedSocket(zmq.ROUTER, self._receive)
        socket.socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE)
        host = f"[{server.interface}]" if ":" in server.interface else server.interface
        endpoint = socket.bind(f"tcp://{host}:{server.port or '*'}")
        self._ticker = gevent.spawn(self._tick)
        return endpoint

    def _receive(self, parts: list[bytes]) -> None:
        rid, message = parts[0], parts[1:]
        link = self._by_path.get(rid)
        if link is not None:
            link.peer.receive(message)
            return
        try:
            self._stranger(rid, message)
        except ProtocolError as error:
            self._malformed += 1
            if self._malformed == 1:
                log.warning("event=malformed_stranger error=%r", error.detail)

    def _stranger(self, rid: bytes, message: list[bytes]) -> None:
        """A message of a routing id that is not linked: an introduction, or nothing."""
        frames = decode(message[1:])
        if message[0] or not frames or frames[0].type != HELLO or self._socket is None:
            return
        session = Session(time.monotonic(), self._config.fabric.heartbeat)
        _, event = session.receive(frames[0], time.monotonic())
        if not isinstance(event, Greeted):
            return
        body = event.body
        send = self._socket.send
        refusal = self._judge(body)
        if refusal is not None:
            code, text = refusal
            log.warning("event=router_refused code=%s router=%.64r", code, body.get("uid"))
            send([rid, b"", *encode([session.refuse(code, text)])])
            return
        uid = str(body["uid"])
        link = self._listening.get(uid)
        if link is None:
            link = self._listening[uid] = RouterLink(self._agent, self._config, "SERVER")
        self._by_path = {path: other for path, other in self._by_path.items() if other is not link}
        self._by_path[rid] = link
        link.router = {name: body.get(name) for name in ("uid", "name", "platform")}
        link.peer.attach(lambda out: send([rid, *out]), session)
        link.peer.welcome(self._agent.introduce())

    def _judge(self, body: dict[str, Any]) -> tuple[str, str] | None:
        """Why a router is not let in, None if it is."""
        if body.get("kind") != "router" or not isinstance(body.get("uid"), str):
            return "bad_hello", "this endpoint is for routers"
        if body.get("protocol") != VERSION:
            return "bad_version", f"this agent speaks version {VERSION} of the protocol"
        tokens = self._config.server.accept_tokens
        given = str(body.get("token") or "").encode()
        # Every token is compared, in constant time, so that the answer's delay tells nothing.
        if tokens and not any([hmac.compare_digest(token.encode(), given) for token in tokens]):  # noqa: C419
            return "bad_token", "the token is not accepted"
        if body["uid"] not in self._listening and len(self._listening) >= _MAX_ROUTERS:
            return "too_many", "too many routers are linked"
        return None

    def _tick(self) -> None:
        while True:
            gevent.sleep(_TICK)
            now = time.monotonic()
            for link in self._listening.values():
                link.peer.tick(now)
