"""Takes the routers that dial this agent (``server.*``), once they have shown a valid token.

Before that, a peer costs a look at one small message and leaves nothing behind; no more than `_HELLOS` strangers are
looked at per second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import zmq

from prouter.agent.links.router_gate import RouterGate
from prouter.agent.links.router_link import RouterLink
from prouter.errors import ProtocolError
from prouter.fabric.frames import HELLO, REFUSE, VERSION, Frame, decode, encode, pack_body, unpack_body
from prouter.fabric.session import LOST_AFTER, Session
from prouter.transport.dialler import Punctual
from prouter.transport.zeromq.router import RouterSocket

__all__ = ["Listener"]

log = logging.getLogger("prouter.agent.links")

_ROUTERS = 64
"""Routers that may be linked; one that is away without open streams makes room for another."""
_HELLOS = 50.0
"""Introductions of strangers looked at per second."""
_UID = 128
"""Characters of a router's uid."""
_HELLO_SIZE = 64 * 1024
"""Bytes of an introduction at most."""
_MESSAGE_SIZE = 16 * 1024 * 1024
_HANDSHAKE = 5000
"""Milliseconds a TCP peer has for ZeroMQ's own handshake."""


class Listener:
    """The socket routers dial, and who is behind which routing id.

    Args:
        new_link: makes the link for a router that was not linked before.
        gate: the rules by which routers are let in.
        heartbeat: seconds.
        incarnation: this agent's own.
    """

    def __init__(
        self,
        new_link: Callable[[], RouterLink],
        gate: RouterGate,
        heartbeat: float,
        incarnation: str,
    ) -> None:
        self._new_link = new_link
        self._by_router: dict[str, RouterLink] = {}
        self._gate = gate
        self._own_incarnation = incarnation
        self._heartbeat = heartbeat
        self._paths: dict[bytes, RouterLink] = {}
        self._allowance = _HELLOS
        self._refilled = time.monotonic()
        self._ignored = 0
        self._socket = RouterSocket(self._receive, self._disconnected)
        self._socket.socket.setsockopt(zmq.MAXMSGSIZE, _MESSAGE_SIZE)
        self._socket.socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        self._ticker = gevent.spawn(self._tick)

    @property
    def links(self) -> list[RouterLink]:
        """All routers that were accepted, whether they are there or away."""
        return list(self._by_router.values())

    def bind(self, interface: str, port: int) -> str:
        """Take routers at this address; the endpoint, ``tcp://HOST:PORT``.

        Raises:
            zmq.ZMQError: it cannot be bound.
        """
        if ":" in interface:
            self._socket.socket.setsockopt(zmq.IPV6, 1)
            interface = f"[{interface}]"
        return self._socket.bind(f"tcp://{interface}:{port or '*'}")

    def _receive(self, parts: list[bytes]) -> None:
        link = self._paths.get(parts[0])
        if link is not None:
            link.peer.receive(parts[1:])
        elif not self._introduce(parts):
            self._ignored += 1
            if self._ignored == 1:
                log.warning("event=stranger_ignored bytes=%d", sum(map(len, parts)))

    def _introduce(self, parts: list[bytes]) -> bool:
        """Look at a stranger's first message; whether it was an introduction."""
        if len(parts) != 3 or parts[1] or len(parts[2]) > _HELLO_SIZE or not self._admit():
            return False
        try:
            frames = decode(parts[2:])
            if not frames or frames[0].type != HELLO:
                return False
            body = unpack_body(frames[0].payload)
        except ProtocolError:
            return False
        refusal = self._refusal(body)
        if refusal is None:
            self._accept(parts, str(body["uid"]))
        else:
            code, text = refusal
            log.warning("event=router_refused code=%s router=%.64r text=%r", code, body.get("uid"), text)
            frame = Frame(REFUSE, payload=pack_body({"code": code, "text": text}))
            self._socket.send([parts[0], b"", *encode([frame])])
        return True

    def _refusal(self, body: dict[str, Any]) -> tuple[str, str] | None:
        if body.get("protocol") != VERSION:
            return (
                "bad_version",
                f"this agent speaks version {VERSION} of the protocol, not {body.get('protocol')!r:.16}",
            )
        uid = body.get("uid")
        refusal = self._gate.refusal(uid, body.get("token"), "")
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

    def _accept(self, parts: list[bytes], uid: str) -> None:
        """Attach the path to the router's link, old or new, and let the link hear the introduction."""
        rid = parts[0]
        link = self._by_router.get(uid)
        if link is None:
            link = self._by_router[uid] = self._new_link()
        self._forget_path(link)
        self._paths[rid] = link

        def send(message: Sequence[bytes]) -> bool:
            if self._socket.send([rid, *message]):
                return True
            gevent.get_hub().loop.run_callback(self._path_broke, rid)
            return False

        link.peer.attach(send, Session(time.monotonic(), self._heartbeat))
        link.peer.receive(parts[1:])

    def _make_room(self) -> bool:
        """Whether one more router may link, forgetting one that is away if need be."""
        if len(self._by_router) < _ROUTERS:
            return True
        for uid, link in self._by_router.items():
            if link.idle:
                self._forget_path(link)
                del self._by_router[uid]
                return True
        return False

    def _admit(self) -> bool:
        """Whether there is time to look at one more stranger."""
        now = time.monotonic()
        self._allowance = min(_HELLOS, self._allowance + (now - self._refilled) * _HELLOS)
        self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _forget_path(self, link: RouterLink) -> None:
        for rid in [rid for rid, known in self._paths.items() if known is link]:
            del self._paths[rid]

    def _path_broke(self, rid: bytes) -> None:
        link = self._paths.pop(rid, None)
        if link is not None:
            link.peer.lose("connection closed")

    def _disconnected(self) -> None:
        """Some connection was closed: sending tells whose."""
        for link in list(self._paths.values()):
            link.peer.ping()

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
                    self._forget_path(link)

    def close(self) -> None:
        """Take no router any more; goodbyes have a moment to leave."""
        self._ticker.kill(block=False)
        self._socket.close(linger=0.2)
