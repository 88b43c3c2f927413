"""Keep a `Peer` connected to a broker: a fresh socket for each attempt, with one backoff between attempts.

A fresh socket means that no message of an earlier connection can arrive on a later one. A session begins when the
connection is there: its HELLO then arrives once, and the time that handshakes wait for others is nobody's silence. One
attempt tries each address of the host once; nothing below this module tries again by itself, so `Backoff` alone says
how often a peer is dialled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent

from prouter.fabric.session import LATE, LOST_AFTER, Session
from prouter.transport.backoff import Backoff
from prouter.transport.dealer import DealerSocket
from prouter.transport.peer import Peer
from prouter.transport.zeromq.curve import ClientCurve

__all__ = ["Dialler", "Punctual"]

_HANDSHAKE = 20.0
"""Seconds that the transport's handshake may take. After a restart of a router with many agents it takes as long as the
others' handshakes before it; whoever gives up earlier and comes again makes the others wait longer."""


class Punctual:
    """Repeated sleep of one interval that measures how late it wakes.

    A stopped or starved process hears nothing; that must not count as its peers' silence.

    Args:
        interval: seconds.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = time.monotonic()

    def sleep(self) -> float:
        """Sleep for the interval; return by how many seconds it took too long, 0.0 if less than `LATE`."""
        self._due = time.monotonic() + self._interval
        gevent.sleep(self._interval)
        late = time.monotonic() - self._due
        return late if late > LATE else 0.0


class Dialler:
    """Dial `endpoint` until told to stop.

    Args:
        peer: the conversation to keep attached. Its delegate calls `succeeded` and `lost`.
        endpoint: ZeroMQ endpoint, ``tcp://host:port`` or ``ipc://path``.
        identity: stable name of this process; the routing id of each attempt starts with it.
        hello: makes the HELLO body for each attempt.
        heartbeat: seconds, see `Session`.
        backoff: delays between attempts.
        on_trouble: told in words why there is no connection, for the first attempts and ever fewer of the later ones.
        curve: returns the keys for the next attempt; None for no encryption.
        welcomed_within: see `Session`.

    Attributes:
        attempts: number of attempts so far.

    Raises:
        ValueError: from `start`: `endpoint` is malformed.
    """

    def __init__(
        self,
        peer: Peer,
        endpoint: str,
        *,
        identity: str,
        hello: Callable[[], dict[str, Any]],
        heartbeat: float,
        backoff: Backoff,
        on_trouble: Callable[[str], None] | None = None,
        curve: Callable[[], ClientCurve | None] = lambda: None,
        welcomed_within: int = LOST_AFTER,
    ) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.attempts = 0
        self._identity = identity
        self._hello = hello
        self._heartbeat = heartbeat
        self.backoff = backoff
        self._on_trouble = on_trouble
        self._curve = curve
        self._welcomed_within = welcomed_within
        self._socket: DealerSocket | None = None
        self._ticker: gevent.Greenlet[[], None] | None = None
        self._redial: Any = None
        self._began = 0.0
        """When the present attempt began."""
        self._stopped = False

    def start(self) -> None:
        """Dial now, and again whenever the connection is lost."""
        self._dial()
        self._ticker = gevent.spawn(self._tick)

    def stop(self, reason: str = "shutdown") -> None:
        """Say goodbye and stop dialling."""
        self._stopped = True
        self.peer.goodbye(reason)
        if self._ticker is not None:
            self._ticker.kill(block=False)
        if self._redial is not None:
            self._redial.kill(block=False)
        if self._socket is not None:
            self._socket.close(linger=0.2)
            self._socket = None

    def succeeded(self) -> None:
        """Reset the backoff: the session is established."""
        self.backoff.succeeded()

    def lost(self) -> None:
        """Drop the connection, which is lost or was refused, and dial again after the backoff's delay."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._stopped or self._redial is not None:
            return
        self._redial = gevent.spawn_later(self.backoff.next(), self._dial)

    def _dial(self) -> None:
        self._redial = None
        if self._stopped:
            return
        self.attempts += 1
        identity = f"{self._identity}:{self.attempts}".encode()
        socket = DealerSocket(
            self.endpoint,
            self.peer.receive,
            self._ended,
            identity,
            first=self.attempts - 1,
            on_trouble=self._on_trouble,
            curve=self._curve(),
            explain=_is_power_of_two(self.backoff.failures),
            on_ready=partial(self._connected, self._hello()),
        )
        self._socket = socket
        self._began = time.monotonic()

    def _connected(self, hello: dict[str, Any]) -> None:
        """Begin the session: from now on the other end's silence counts."""
        if self._socket is not None:
            session = Session(time.monotonic(), self._heartbeat, hello, welcomed_within=self._welcomed_within)
            self.peer.attach(self._socket.send, session)

    def _ended(self, reason: str) -> None:
        self.peer.lose(reason)

    def _tick(self) -> None:
        punctual = Punctual(min(self._heartbeat / LOST_AFTER, 1.0))
        while True:
            late = punctual.sleep()
            now = time.monotonic()
            if late:
                self.peer.excuse(late, now)
                self._began += late
            self.peer.tick(now)
            if self._socket is not None and self.peer.session is None and now - self._began > _HANDSHAKE:
                self._ended(f"no handshake within {_HANDSHAKE:g} s")


def _is_power_of_two(number: int) -> bool:
    """Whether `number` is 0 or a power of two: probing each failed attempt would double the connections to a peer."""
    return not number & (number - 1)
