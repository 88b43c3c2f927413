"""The endpoint for routers that dial this agent (``server.*``), and their authentication.

Before a router has shown a valid token it costs a look at one small message. At most `_HELLOS` such messages are looked
at per second; connections that send anything else are closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent

from prouter.agent.links.router_gate import RouterGate
from prouter.agent.links.router_link import RouterLink
from prouter.errors import ProtocolError
from prouter.fabric.frames import HELLO, REFUSE, VERSION, Frame, decode, encode, pack_body, unpack_body
from prouter.fabric.session import LOST_AFTER, Session
from prouter.key_pairs import KeyPair
from prouter.texts import shown
from prouter.transport.connection import Connection
from prouter.transport.dialler import Punctual
from prouter.transport.router_socket import RouterSocket
from prouter.transport.zmtp.server_keys import ServerCurve

__all__ = ["Listener"]

log = logging.getLogger("prouter.agent.links")

_ROUTERS = 64
"""Routers that may be linked; one that is away without open streams makes room for another."""
_HELLOS = 50.0
"""HELLO messages of unauthenticated connections looked at per second."""
_UID = 128
"""Characters of a router's uid."""
_HELLO_SIZE = 64 * 1024
"""Bytes that a connection may send before it is authenticated."""
_LAST_WORDS = 0.2
"""Seconds that a refusal or goodbye has to leave."""


class Listener:
    """The socket that routers dial, and which connection is which router's.

    Args:
        new_link: makes the link for a router that was not linked before.
        gate: which routers may link.
        pair: this agent's own keys; None for links without encryption.
        heartbeat: seconds between keepalives of a quiet router.
        incarnation: this agent's own.
        interface: address to listen on.
        port: 0 for any free one.

    Attributes:
        endpoint: ``tcp://HOST:PORT`` that was bound.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        new_link: Callable[[], RouterLink],
        gate: RouterGate,
        pair: KeyPair | None,
        heartbeat: float,
        incarnation: str,
        interface: str,
        port: int,
    ) -> None:
        self._new_link = new_link
        self._by_router: dict[str, RouterLink] = {}
        self._gate = gate
        self._own_incarnation = incarnation
        self._heartbeat = heartbeat
        self._links: dict[Connection, RouterLink] = {}
        self._allowance = _HELLOS
        self._refilled = time.monotonic()
        self._ignored = 0
        curve = ServerCurve(pair, gate.accepts) if pair is not None else None
        self._socket = RouterSocket(interface, port, self._receive, self._closed, curve=curve, limit=_HELLO_SIZE)
        self.endpoint = self._socket.endpoint
        self._ticker = gevent.spawn(self._tick)

    @property
    def links(self) -> list[RouterLink]:
        """All routers that were accepted, connected or away."""
        return list(self._by_router.values())

    def _receive(self, connection: Connection, parts: list[bytes]) -> None:
        link = self._links.get(connection)
        if link is not None:
            link.peer.receive(parts)
        elif self._admit() and not self._introduce(connection, parts):
            self._ignored += 1
            if self._ignored == 1:
                log.warning("event=unauthenticated_connection_closed bytes=%d", sum(map(len, parts)))
            self._socket.drop(connection)

    def _introduce(self, connection: Connection, parts: list[bytes]) -> bool:
        """Accept or refuse a connection by its first message; return whether that was a HELLO."""
        if len(parts) != 2 or parts[0] or len(parts[1]) > _HELLO_SIZE:
            return False
        try:
            frames = decode(parts[1:])
            if not frames or frames[0].type != HELLO:
                return False
            body = unpack_body(frames[0].payload)
        except ProtocolError:
            return False
        refusal = self._refusal(body, connection.peer_key)
        if refusal is None:
            self._accept(connection, parts, str(body["uid"]))
            return True
        code, text = refusal
        log.warning("event=router_refused code=%s router=%s text=%r", code, shown(body.get("uid")), text)
        frame = Frame(REFUSE, payload=pack_body({"code": code, "text": text}))
        self._socket.send(connection, [b"", *encode([frame])])
        self._socket.drop(connection, _LAST_WORDS)
        return True

    def _refusal(self, body: dict[str, Any], key: str) -> tuple[str, str] | None:
        """Return code and text of why a HELLO is not accepted; None if it is."""
        if body.get("protocol") != VERSION:
            text = f"this agent speaks version {VERSION} of the protocol, not {shown(body.get('protocol'), 16)}"
            return "bad_version", text
        uid = body.get("uid")
        refusal = self._gate.refusal(uid, body.get("token"), key)
        if refusal is not None:
            return refusal
        if (
            body.get("kind") != "router"
            or not isinstance(uid, str)
            or not 0 < len(uid) <= _UID
            or not uid.isprintable()
        ):
            return "bad_hello", "this agent is for routers, which tell their uid"
        if body.get("incarnation") == self._own_incarnation:
            return "bad_hello", "this is the agent itself"
        if uid not in self._by_router and not self._make_room():
            return "overloaded", f"{_ROUTERS} routers are linked already"
        return None

    def _accept(self, connection: Connection, parts: list[bytes], uid: str) -> None:
        """Attach the connection to the router's link, old or new, and let the link hear the HELLO."""
        self._socket.trust(connection)
        link = self._by_router.get(uid)
        if link is None:
            link = self._by_router[uid] = self._new_link()
        self._forget_connections(link)
        self._links[connection] = link

        def send(message: Sequence[bytes]) -> bool:
            if self._socket.send(connection, message):
                return True
            gevent.get_hub().loop.run_callback(self._closed, connection)
            return False

        link.peer.attach(send, Session(time.monotonic(), self._heartbeat))
        link.peer.receive(parts)

    def _make_room(self) -> bool:
        """Return whether one more router may link; forget one that is away if need be."""
        if len(self._by_router) < _ROUTERS:
            return True
        for uid, link in self._by_router.items():
            if link.idle:
                self._forget_connections(link)
                del self._by_router[uid]
                return True
        return False

    def _admit(self) -> bool:
        """Return whether one more unauthenticated connection may be looked at now. Routers repeat their HELLO."""
        now = time.monotonic()
        self._allowance = min(_HELLOS, self._allowance + (now - self._refilled) * _HELLOS)
        self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _forget_connections(self, link: RouterLink) -> None:
        """Close the connections of a link that has a new one, or none any more."""
        for connection in [connection for connection, known in self._links.items() if known is link]:
            del self._links[connection]
            self._socket.drop(connection, _LAST_WORDS)

    def _closed(self, connection: Connection) -> None:
        """A router's connection has ended."""
        link = self._links.pop(connection, None)
        if link is not None:
            link.peer.lose("connection closed")

    def _tick(self) -> None:
        punctual = Punctual(min(self._heartbeat / LOST_AFTER, 1.0))
        while True:
            late = punctual.sleep()
            now = time.monotonic()
            for link in list(self._by_router.values()):
                if late:
                    link.peer.excuse(late, now)
                link.peer.tick(now)
                if link.peer.session is None:
                    self._forget_connections(link)

    def close(self) -> None:
        """Accept no router any more; goodbyes have a moment to leave."""
        self._ticker.kill(block=False)
        self._socket.close(linger=_LAST_WORDS)
