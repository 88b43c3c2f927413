"""All connections of the broker: accepted, heard in fair turns, flushed once per event loop iteration, and closed.

Both transports look the same from here: connections that were accepted speak ZMTP on this loop, dialled ones libzmq's.
Each has a descriptor, which the poller watches.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from typing import Protocol

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.sockets.partial_messages import Unfinished
from prouter.broker.sockets.poller import Poller, Turn
from prouter.broker.sockets.port import Port
from prouter.broker.sockets.unheard import Unheard
from prouter.broker.sockets.waiting import Waiting, says_something
from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE
from prouter.process.log_limit import LogLimit
from prouter.process.memory import give_back_memory
from prouter.transport.connection import Connection
from prouter.transport.unauthenticated import Unauthenticated
from prouter.transport.zeromq.dealer import DealerConnection
from prouter.transport.zmtp.accepting import OwnListener

__all__ = ["Authority", "Connections"]

log = logging.getLogger("prouter.broker")

_ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted, or too many are unauthenticated."""
_MOST_WAITING = 16_384
"""Connections that wait for their handshakes to begin, at most; others wait in the kernel."""
_ADMITTED = 100
"""Handshakes that begin at once, at most."""
_TICK = 0.1
"""Seconds between two looks at time limits and at messages that do not arrive whole."""
_MOST_AHEAD = MAX_MESSAGE
"""Bytes that an agent may send ahead while it is read slowly. The kernel bounds that of accepted connections."""


class Authority(Protocol):
    """Who decides about peers: the broker's core, with what its shell adds."""

    def control(self, port: Port, parts: Sequence[bytes], now: float) -> None:
        """A message to the broker itself.

        Raises:
            ProtocolError: of a peer that is not authenticated.
        """

    def unreachable(self, target: Path, now: float) -> None:
        """A message could not be passed on, since the connection of `target` is closed."""

    def unroutable(self, source: Path, now: float) -> None:
        """A message of `source` was dropped: its route leads nowhere."""

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        """A message of `source` was dropped: too much waits for `target` already."""

    def relieved(self, target: Path, sources: list[Path], now: float) -> None:
        """There is room again for what `sources` send to `target`."""

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """A peer broke the protocol, which closed its connection."""

    def disconnected(self, path: Path, now: float) -> None:
        """The connection of `path` is closed."""

    def troubled(self, path: Path, text: str) -> None:
        """Why there is no agent at the end of a dialled path."""

    def unfinished(self, path: Path, now: float) -> None:
        """An agent left too much of its messages unfinished: its connection is closed."""

    def ahead(self, path: Path, now: float) -> None:
        """An agent sent too much while it was to be read slowly: its connection is closed."""

    def flush(self, now: float) -> None:
        """Queue what the core wants to say."""


class Connections:
    """Sockets of the broker and the ports that use them.

    Args:
        env: settings, timers and the switch.
        poller: the event loop's.
        authority: who decides.
        guard: runs a handler so that its mistake does not end everything.
        descriptors: how many this process may have.
    """

    def __init__(
        self,
        env: Env,
        poller: Poller,
        authority: Authority,
        guard: Callable[[Callable[[float], None], float], None],
        descriptors: int,
    ) -> None:
        self._env = env
        self._poller = poller
        self._authority = authority
        self._guard = guard
        self._descriptors = descriptors
        self._unauthenticated: Unauthenticated[Port] = Unauthenticated(descriptors // 4)
        self._waiting: Waiting[OwnListener] = Waiting()
        self._ports: dict[Connection, Port] = {}
        self._listeners: dict[OwnListener, bool] = {}
        """Whether workers connect there."""
        self.written: list[Port] = []
        """Ports with something to be flushed."""
        self._unheard = Unheard()
        self._dialled: dict[Port, DealerConnection] = {}
        self._closing: list[Port] = []
        self._held: Unfinished[Port] = Unfinished()
        self._sweeping = False
        self._logs = LogLimit()

    @property
    def busy(self) -> bool:
        """Whether there is something to be heard, even if no descriptor becomes ready."""
        return bool(self._unheard) or bool(self._waiting and not self._unauthenticated.full)

    @property
    def unauthenticated_count(self) -> int:
        """Connections of peers that are not authenticated."""
        return len(self._unauthenticated) + len(self._waiting)

    @property
    def cut(self) -> int:
        """How many of them were closed because they were silent or took too long."""
        return self._unauthenticated.cut + self._waiting.cut

    # -- listening ----------------------------------------------------------------------------------------------------

    def listen(self, listener: OwnListener, *, workers: bool) -> None:
        """Accept connections of workers, or of agents."""
        self._listeners[listener] = workers
        self._watch(listener)

    def _watch(self, listener: OwnListener) -> None:
        turn = Turn.FIRST if self._listeners[listener] else Turn.AGENTS
        self._poller.watch(listener.fd, partial(self._hear, listener), turn)

    def _hear(self, listener: OwnListener, now: float) -> None:
        """Somebody has connected."""
        workers = self._listeners[listener]
        if not workers and len(self._waiting) >= self._room:
            self._rest(listener, now)
            return
        try:
            for sock in listener.accept_sockets():
                if workers:
                    self._begin(sock, listener, now)
                else:
                    self._waiting.add(sock, listener, now)
        except OSError as error:
            log.error("event=accept_failed endpoint=%s error=%r", listener.endpoint, str(error))
            self._rest(listener, now)
        self._admit(now)

    @property
    def _room(self) -> int:
        """How many connections may wait: unauthenticated ones take half of the descriptors that are left, at most."""
        unauthenticated = len(self._unauthenticated)
        return min(_MOST_WAITING, (self._descriptors - len(self._ports) + unauthenticated) // 2 - unauthenticated)

    def _admit(self, now: float) -> None:
        """Begin with handshakes of connections that wait."""
        self._end_unauthenticated(now)
        if not self._unauthenticated.full:
            # While others go on with theirs, as many as these finish.
            for sock, listener in self._waiting.take(1 if self._poller.crowded else _ADMITTED, now):
                self._begin(sock, listener, now)
        if self._ports and not self._sweeping:
            self._sweep(now)

    def _rest(self, listener: OwnListener, now: float) -> None:
        """Leave those that connect to the kernel for a while."""
        self._poller.unwatch(listener.fd)
        self._env.timers.at(now + _ACCEPT_PAUSE, lambda _: self._watch(listener))

    def _begin(self, sock: socket, listener: OwnListener, now: float) -> None:
        """Speak with a peer that has connected; it says who it is in its first message."""
        connection = listener.wire(sock)
        if connection is None:
            return
        workers = self._listeners[listener]
        port = Port(self.written, worker=workers, local=listener.endpoint.startswith("ipc://"))
        port.connected(connection)
        self._add(port, connection, Turn.FIRST if workers else Turn.UNAUTHENTICATED)
        if not workers:
            self._unauthenticated.opened(port, now)

    def _add(self, port: Port, connection: Connection, turn: Turn) -> None:
        self._ports[connection] = port
        if connection.fd >= 0:
            self._poller.watch(connection.fd, partial(self._pump, port), turn)

    def dialled(self, port: Port, connection: DealerConnection, now: float) -> None:
        """A connection to an agent that listens is being made; its port has a path already."""
        port.connected(connection)
        self._dialled[port] = connection
        self._add(port, connection, Turn.AGENTS)
        # The first hint of libzmq's descriptor comes only after somebody has looked once.
        self._unheard.add(port)
        if not self._sweeping:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Look after time limits for as long as there are connections."""
        self._end_unauthenticated(now)
        for port, connection in list(self._dialled.items()):
            if connection.inspect():
                self._bound(port, now)
        self._sweeping = bool(self._ports)
        if self._sweeping:
            self._env.timers.at(now if self._unauthenticated.due(now) else now + _TICK, self._sweep)

    def _end_unauthenticated(self, now: float) -> None:
        for port in self._unauthenticated.take_due(now, lambda port: says_something(port.fd)):
            self._shut(port)

    def accept(self, path: Path) -> None:
        """The peer behind a path's connection is authenticated."""
        port: Port = path.carrier
        port.accept(path)
        self._unauthenticated.gone(port)
        self._poller.promote(port.fd, _events(port))

    # -- what arrives -------------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> None:
        """Go on with what was left by the last event loop iteration."""
        if self._waiting:
            self._admit(now)
        for port in self._unheard.turns():
            self._guard(partial(self._pump, port), now)

    def _pump(self, port: Port, now: float) -> None:
        """Something arrived, or waits to be moved, or can be sent."""
        if port.unheard and not port.watched_for_writing:
            return  # Its turn comes; it is not heard more often because more arrives.
        if port.path is None:
            self._unauthenticated.heard(port, now)
        try:
            port.pump(self._env.switch, now, self._authority.control, self._authority)
        except (OSError, ProtocolError) as error:
            self._failed(port, error, now)
            return
        except Exception as error:
            # What it received is lost, and what follows may fail the same way.
            self._env.counts["failures"] += 1
            if self._logs.allows(now):
                log.exception("event=connection_failed peer=%.64r", port.identity)
            self._failed(port, error, now)
            return
        if port.unfinished and not port.paused:
            self._unheard.add(port)
        elif port.unheard:
            self._unheard.discard(port)
        if port.watched_for_writing:
            self.written.append(port)
        if not port.worker:
            self._bound(port, now)

    def _failed(self, port: Port, error: Exception, now: float) -> None:
        """A connection has ended, or its peer breaks the protocol."""
        log.debug("event=peer_disconnected peer=%.64r error=%r", port.identity, str(error))
        path = port.path
        self._shut(port)
        if isinstance(error, ProtocolError):
            self._authority.malformed(path, error)
            if path is not None:
                self._authority.troubled(path, f"no agent listens there: {error.detail}")
        if path is not None:
            self._authority.disconnected(path, now)
        self._authority.flush(now)

    def _bound(self, port: Port, now: float) -> None:
        """Cut off who sends too far ahead, and who leaves too much unfinished once all together do."""
        held = port.held
        if not held and not self._held.total:
            return
        self._held.holds(port, held)
        if port.paused and held > _MOST_AHEAD and port.path is not None:
            log.warning("event=sent_ahead peer=%.64r bytes=%d", port.identity, held)
            self._shut(port)
            self._authority.ahead(port.path, now)
            self._authority.flush(now)
        while (other := self._held.too_much()) is not None:
            path = other.path
            log.warning("event=message_unfinished bytes=%d held=%d", other.held, self._held.total)
            self._shut(other)
            if path is not None:
                self._authority.unfinished(path, now)
            self._authority.flush(now)

    def pause(self, path: Path, seconds: float) -> None:
        """Read nothing more of a peer for a while."""
        port: Port = path.carrier
        if not port.paused and not port.closed:
            port.paused = True
            self._unheard.discard(port)
            self._poller.change(port.fd, _events(port))
            self._env.timers.at(self._env.now + seconds, partial(self._resume, port))

    def _resume(self, port: Port, now: float) -> None:
        port.paused = False
        if port.closed:
            return
        self._poller.change(port.fd, _events(port))
        if port.path is not None:
            port.path.heard = max(port.path.heard, now)
        self._pump(port, now)

    # -- what leaves --------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what this iteration has for each peer, in one piece; then close what is not used any more."""
        while self.written:
            written, self.written[:] = self.written[:], ()
            for port in written:
                port.flush()
                if port.blocked != port.watched_for_writing and not port.closed:
                    port.watched_for_writing = port.blocked
                    self._poller.change(port.fd, _events(port))
                if port.unfinished and not port.paused and not port.closed:
                    self._unheard.add(port)  # Sending consumes libzmq's hint that something arrived.
                relieved = port.relieved(now)
                if relieved and port.path is not None:
                    self._authority.relieved(port.path, relieved, now)
            self._authority.flush(now)
        closing, self._closing = self._closing, []
        for port in closing:
            self._shut(port)

    def forget(self, path: Path) -> None:
        """The path is not used any more; what is pending on it is sent first."""
        port: Port = path.carrier
        port.leaving = True
        self._closing.append(port)

    def _shut(self, port: Port) -> None:
        self._poller.unwatch(port.fd)
        if port.connection is not None:
            self._ports.pop(port.connection, None)
        self._unheard.discard(port)
        self._dialled.pop(port, None)
        self._unauthenticated.gone(port)
        port.close()
        if self._held.let_go(port):
            # What failed may refer to it until it is dealt with.
            self._env.timers.at(self._env.now + 0.1, lambda _: give_back_memory())

    def close(self, seconds: float) -> None:
        """Accept nobody any more and close all; last words have so many seconds to leave, during which this blocks."""
        self.flush(time.monotonic())
        deadline = time.monotonic() + seconds
        for port in list(self._ports.values()):
            port.close(max(0.0, deadline - time.monotonic()))
        self._waiting.close()
        for listener in self._listeners:
            listener.close(seconds)


def _events(port: Port) -> int:
    reading = 0 if port.paused else select.EPOLLIN
    return reading | select.EPOLLOUT if port.watched_for_writing else reading
