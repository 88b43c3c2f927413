"""All links of an agent: to routers that it dials (``client.*``) and from those that dial it (``server.*``).

All routers that are dialled see the same jobs under the same paths, and so do all that dial in: a job is announced to
the links whose connection it has.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from prouter.addresses import router_endpoint
from prouter.agent.jobs.pool import Figures
from prouter.agent.jobs.sandbox_reports import Size
from prouter.agent.jobs.usage_reports import Usage
from prouter.agent.links.router_gate import RouterGate
from prouter.agent.links.router_link import CLIENT, SERVER, Host, RouterLink
from prouter.agent.links.server import Listener
from prouter.fabric.bounds import MAX_ROUTERS
from prouter.jobs import JobRecord
from prouter.key_pairs import KeyPair
from prouter.keys.known_routers import KnownRouter
from prouter.transport.backoff import Backoff
from prouter.transport.dialler import Dialler
from prouter.transport.zeromq.curve import ClientCurve

__all__ = ["WELCOMED_WITHIN", "Links"]

WELCOMED_WITHIN = 10
"""Heartbeats that a router may take to welcome this agent: it may have just started, and thousands link at once."""


class Links:
    """All links of an agent.

    Args:
        host: the agent.
        heartbeat: seconds between keepalives of a quiet router.
        resume_timeout: seconds that streams wait for a lost connection.
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

    def dial(self, router: KnownRouter, pair: KeyPair | None, backoff: Backoff) -> None:
        """Keep a link to a router for as long as the agent lives.

        Args:
            router: its address, keys and token. Links are encrypted if it has keys; they are tried in turns.
            pair: this agent's own key pair; None if the router has no keys.
            backoff: delays between attempts; of this router alone.

        Raises:
            ValueError: the address is malformed.
        """
        # The router names the connection in its WELCOME.
        link = RouterLink(self._host, SERVER, router.address, "", self._resume_timeout, router.keys)

        def curve() -> ClientCurve | None:
            return ClientCurve(link.key, pair) if pair is not None and link.key else None

        link.dialler = Dialler(
            link.peer,
            router_endpoint(router.address),
            identity=uuid.uuid4().hex,
            hello=lambda: {"kind": "agent", **self._host.hello(), "token": router.token},
            heartbeat=self._heartbeat,
            backoff=backoff,
            on_trouble=link.troubled,
            curve=curve,
            welcomed_within=WELCOMED_WITHIN,
        )
        self._links.append(link)
        link.dialler.start()

    def listen(self, interface: str, port: int, gate: RouterGate, pair: KeyPair | None) -> str:
        """Let routers link to this agent; return the bound endpoint, ``tcp://HOST:PORT``.

        Args:
            interface: address to listen on.
            port: 0 for any free one.
            gate: which routers may link.
            pair: this agent's own keys; None for links without encryption.

        Raises:
            OSError: the endpoint cannot be bound.
        """
        incarnation = self._incarnation()
        connection = hashlib.sha256(f"{incarnation}:client".encode()).hexdigest()[:32]

        def new_link() -> RouterLink:
            return RouterLink(self._host, CLIENT, "", connection, self._resume_timeout)

        self._listener = Listener(new_link, gate, pair, self._heartbeat, incarnation, interface, port)
        return self._listener.endpoint

    def _incarnation(self) -> str:
        return str(self._host.hello()["incarnation"])

    def is_up(self, address: str) -> bool:
        """Whether the dialled router at this address is linked now."""
        return any(link.up for link in self._links if link.address == address)

    def give_up(self, address: str) -> None:
        """Do not dial the router at this address any more; it is away."""
        for link in [link for link in self._links if link.address == address and not link.up]:
            link.close("another router has taken its place")
            self._links.remove(link)

    def tell_routers(self) -> None:
        """Tell every linked router to which routers this agent links."""
        routers = [{"address": link.address, "uid": str(link.router.get("uid") or ""), "up": link.up} for link in self]
        self.tell("routers", {"routers": routers[:MAX_ROUTERS]})

    def tell_job(self, record: JobRecord, name: str = "job") -> None:
        """Announce to the job's routers that it changed or, with ``job.removed``, was removed."""
        for link in self:
            link.tell_job(record, name)

    def tell_usage(self, connection: str, usages: list[Usage]) -> None:
        """Report to the jobs' routers what they use now."""
        for link in self:
            link.tell_usage(connection, usages)

    def wanting_sandboxes(self) -> set[str]:
        """The uids of the connections whose routers want to know how large sandboxes are."""
        return {link.connection for link in self if link.up and link.wants_sandboxes}

    def tell_sandboxes(self, connection: str, sizes: list[Size]) -> None:
        """Report to the jobs' routers how large their sandboxes are."""
        for link in self:
            link.tell_sandboxes(connection, sizes)

    def tell_pool(self, figures: Callable[[str], Figures]) -> None:
        """Report which templates have jobs ready.

        Args:
            figures: what the routers of a connection are told.
        """
        for link in self:
            link.tell_pool(figures(link.connection))

    def tell(self, name: str, body: dict[str, Any]) -> None:
        """Send an event to every linked router."""
        for link in self:
            if link.up:
                link.peer.notify(name, body)

    def close(self, reason: str) -> None:
        """Say goodbye to all routers, and accept no further ones."""
        for link in self:
            link.close(reason)
        if self._listener is not None:
            self._listener.close()
