"""The agent's conversation with one router.

A `RouterLink` outlives its connections, so that calls and streams go on when a connection is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from prouter.agent.jobs.pool import Figures
from prouter.agent.jobs.sandbox_reports import Size
from prouter.agent.jobs.usage_reports import Usage
from prouter.errors import ProtocolError
from prouter.fabric.calls import Request
from prouter.fabric.parts import in_parts
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord
from prouter.transport.dialler import Dialler
from prouter.transport.peer import Peer

__all__ = ["CLIENT", "SERVER", "Host", "RouterLink"]

log = logging.getLogger("prouter.agent.links")

SERVER = "SERVER"
"""Mode of a connection, as the router sees it: the agent dialled in."""
CLIENT = "CLIENT"
"""The router dialled the agent."""

_LONGEST_UID = 64
"""Characters of a worker's uid; it has 32."""
_KEYS = 4
"""Public keys of one router; during a rotation it has two."""
_TROUBLES = 16
"""Reasons of failure that are logged before the next link."""


class Host(Protocol):
    """The agent that the links belong to. All methods but `carry_out` are called on the loop and must not block."""

    def hello(self) -> dict[str, Any]:
        """Return the HELLO body without a token; connection uids are made from its ``incarnation``."""

    def records(self) -> list[JobRecord]:
        """Return the records of all jobs."""

    def link_up(self, link: RouterLink) -> None:
        """Note that a router is linked."""

    def link_down(self, link: RouterLink, reason: str) -> None:
        """Note that a linked router is away."""

    def link_failed(self, link: RouterLink, reason: str, *, refused: bool) -> None:
        """Note that an attempt to link failed; `refused`: the router answered and does not want this agent."""

    def router_keys(self, link: RouterLink, keys: Sequence[str]) -> None:
        """Store that the dialled router accepted this agent, and the public keys that it may have from now on."""

    def carry_out(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a router's call, in a greenlet of its own; return the reply's value.

        Raises:
            PRouterError: it failed; the router gets the error.
        """

    def open_stream(self, stream: Stream, target: dict[str, Any]) -> None:
        """Serve a stream that a worker opened."""


class RouterLink:
    """Link to one router; the delegate of its `Peer`.

    Attributes:
        mode: `SERVER` or `CLIENT`.
        address: the router's, as configured; empty for a router that dialled in.
        connection: uid of the connection; jobs of this connection are announced to this router.
        up: whether the router is linked now.
        since: when it was linked first, seconds since the epoch; None before.
        router: what the router says of itself: uid, name, platform.
        wants_sandboxes: whether the linked router wants to know how large sandboxes are.
        keys: public keys that a dialled router may have, in the order in which they are tried; none without encryption.
        key_turn: attempts that failed since the last link; each tries the next key.
    """

    def __init__(
        self,
        host: Host,
        mode: str,
        address: str,
        connection: str,
        resume_timeout: float,
        keys: Sequence[str] = (),
    ) -> None:
        self.keys = tuple(keys)
        self.key_turn = 0
        self.mode = mode
        self.address = address
        self.connection = connection
        self.up = False
        self.since: float | None = None
        self.router: dict[str, Any] = {}
        self.wants_sandboxes = False
        self.peer = Peer(
            self, accepts_streams=True, resume_timeout=resume_timeout, process=str(host.hello()["process"])
        )
        self.dialler: Dialler | None = None
        self._host = host
        self._failure = ""
        self._troubles: dict[str, None] = {}
        """Reasons why there was no connection since the last link, the newest last."""

    def describe(self) -> dict[str, Any]:
        """Return the link as the agent's control API lists it."""
        facts = {"auth": {"uid": self.router.get("uid"), "name": self.router.get("name")}}
        peer = {**facts, "platform": self.router.get("platform") or {}, "properties": {}}
        return {"uid": self.connection, "mode": self.mode, "address": self.address, "up": self.up, "peer": peer}

    @property
    def shown(self) -> str:
        """Name of the router in logs."""
        return str(self.router.get("uid") or self.address or "unknown")

    @property
    def idle(self) -> bool:
        """Whether the router is away and no stream waits for it."""
        return not self.peer.ready and not any(mux.streams for mux in self.peer.muxes.values())

    @property
    def key(self) -> str:
        """The key that the next attempt expects of the router; empty without encryption."""
        return self.keys[self.key_turn % len(self.keys)] if self.keys else ""

    def tell_job(self, record: JobRecord, name: str = "job") -> None:
        """Announce that a job changed or, with ``job.removed``, was removed."""
        if self.up and record.connection == self.connection:
            self.peer.notify(name, {"record": record.to_wire()})

    def tell_usage(self, connection: str, usages: list[Usage]) -> None:
        """Report what some running jobs of `connection` use now."""
        if self.up and connection == self.connection:
            self.peer.notify("usage", {"jobs": usages})

    def tell_sandboxes(self, connection: str, sizes: list[Size]) -> None:
        """Report how large some sandboxes of `connection` are."""
        if self.up and self.wants_sandboxes and connection == self.connection:
            self.peer.notify("sandboxes", {"jobs": sizes})

    def tell_pool(self, figures: Figures) -> None:
        """Report which templates have jobs ready."""
        if self.up and figures:
            self.peer.notify("pool", {"templates": figures})

    def close(self, reason: str) -> None:
        """Reset all streams, say goodbye and do not dial any more."""
        self.up = False
        for mux in self.peer.muxes.values():
            for stream in list(mux.streams.values()):
                stream.reset("agent_gone", reason)
        if self.dialler is not None:
            self.dialler.stop(reason)
        else:
            self.peer.goodbye(reason)

    # -- PeerDelegate ---------------------------------------------------------------------------------------------

    def on_greeted(self, peer: Peer, body: dict[str, Any]) -> None:
        """Welcome a router that dialled in and whose token was checked. Its event ``linked`` follows."""
        self.up = False
        self.router = {"uid": body.get("uid"), "name": body.get("name"), "platform": body.get("platform") or {}}
        peer.welcome(self._host.hello())

    def on_ready(self, peer: Peer, body: dict[str, Any]) -> None:
        """Note that the dialled router accepted this agent."""
        self.key_turn = 0  # It names the key in use first.
        router = body.get("router")
        self.router = router if isinstance(router, dict) else {}
        self.connection = str(body.get("connection") or self.connection)
        if self.dialler is not None:
            self.dialler.succeeded()
        self._learn_keys(body.get("keys"))
        self._established()

    def _learn_keys(self, told: object) -> None:
        """Use the keys that the router names, so that the next key is known before the router uses it."""
        keys = tuple(str(key) for key in told[:_KEYS]) if isinstance(told, list) else ()
        if not self.keys:
            keys = ()  # What an unencrypted link says proves nothing.
        self.keys = keys or self.keys
        self._host.router_keys(self, keys)

    def _established(self) -> None:
        self.up = True
        self.wants_sandboxes = False
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
        """Report the refusal, and dial again later."""
        advice = "; client.token must be one of the router's server.accept_tokens" if code == "bad_token" else ""
        self._failed(f"refused: {text or code} ({code}){advice}", refused=True)

    def on_lost(self, peer: Peer, reason: str) -> None:
        """Report that the connection is lost or could not be established, and dial again later."""
        if not self.up:
            self._failed(next(reversed(self._troubles), reason), refused=False)
            return
        self.up = False
        log.warning("event=link_down link=%s router=%s reason=%r", self.connection, self.shown, reason)
        self._host.link_down(self, reason)
        if self.dialler is not None:
            self.dialler.lost()

    def troubled(self, reason: str) -> None:
        """Note why the router cannot be reached; each reason is logged once until it is linked."""
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
        if not refused:
            self.key_turn += 1
        self._host.link_failed(self, reason, refused=refused)

    def on_event(self, peer: Peer, name: str, body: dict[str, Any]) -> None:
        """Follow which workers there are, and learn from a router that dialled in that the link is established.

        Raises:
            ProtocolError: the event is malformed.
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
        elif name == "sandboxes":
            self.wants_sandboxes = body.get("measure") is True
        elif name == "keys" and self.mode == SERVER:
            self._learn_keys(body.get("keys"))
        elif name == "linked" and self.mode == CLIENT:
            self.connection = str(body.get("connection") or self.connection)
            self._established()

    def on_request(self, peer: Peer, request: Request) -> dict[str, Any]:
        """Carry out a call of the router."""
        return self._host.carry_out(request.op, request.args)

    def on_stream(self, peer: Peer, route: bytes, stream: Stream, target: dict[str, Any]) -> None:
        """A worker opened a stream."""
        self._host.open_stream(stream, target)


def _route(worker: object) -> bytes:
    """Return the route to a worker.

    Raises:
        ProtocolError: `worker` is not a worker's uid.
    """
    if not isinstance(worker, str) or not 0 < len(worker) <= _LONGEST_UID:
        raise ProtocolError(f"a worker's uid must be a text of at most {_LONGEST_UID} characters")
    return worker.encode()
