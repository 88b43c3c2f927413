"""The broker's process: the only place with sockets, clocks and other processes. One loop, nothing in it blocks."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path as FilePath

from prouter.addresses import split_address
from prouter.broker.access.gate import Rules
from prouter.broker.base.env import Env
from prouter.broker.base.lag import Lag, process_figures
from prouter.broker.base.security import Security
from prouter.broker.base.switch import Path
from prouter.broker.core import Broker
from prouter.broker.sockets.dialling import Dialling
from prouter.broker.sockets.listeners import Door, open_local_door, open_tcp_door
from prouter.broker.sockets.partial_messages import Unfinished
from prouter.broker.sockets.ports import Port
from prouter.broker.sockets.unauthenticated import Strangers
from prouter.broker.startup import settings_of, watch_access
from prouter.broker.store.store import Store, open_store
from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import Lock, broker_endpoint
from prouter.errors import ProtocolError
from prouter.fabric.frames import decode
from prouter.fabric.session import LATE
from prouter.key_pairs import KeyPair
from prouter.process.descriptors import raise_descriptor_limit
from prouter.process.memory import give_back_memory, keep_freed_memory

__all__ = ["run"]

log = logging.getLogger("prouter.broker")

_BUSY = 0.25
"""Seconds after the last request or byte for which nothing is let wait."""
_GATHER = 0.01
"""Seconds for which signs of life from agents may gather otherwise."""
_FEW = 64
"""Agents whose signs of life are looked at one by one."""
_AT_ONCE = 32
"""Agents that are heard before workers are looked at again."""
_COLLECT = (20_000, 20, 50)
"""Thresholds of garbage collection: a full one takes longer than the loop should keep anybody waiting."""
_STRANGERS_AT_ONCE = 8
"""Connections without an accepted peer that are heard in a turn."""
_ACCEPT_PAUSE = 0.1
"""Seconds to wait when a connection cannot be taken for lack of descriptors."""
_TAKEN = 100
"""Connections taken before others get their turn."""
_LINGER = 0.5
"""Seconds that last words have to leave."""


def run(
    config: RouterConfig,
    *,
    bind_port: int | None = None,
    ready: Callable[[str], None],
    on_shutdown: Callable[[], None] | None = None,
) -> int:
    """Run the broker until SIGTERM, SIGINT or a worker's ``shutdown`` call; the process's exit status. SIGUSR1 drains.

    Args:
        config: with its directories filled in (`prouter.config.directories.locate_router`).
        bind_port: port for agents, whatever ``server.port`` says: a restarted broker takes the one it had.
        ready: called with ``tcp://HOST:PORT`` once agents can link, with an empty text when they are not let in.
        on_shutdown: called for a ``shutdown`` call instead of ending; who runs this broker drains the router and ends
        it.

    Raises:
        ConfigError: another broker runs in the same directories, or the endpoint for agents cannot be bound.
    """
    state, run_dir = FilePath(config.state.dir or "."), FilePath(config.state.run_dir or ".")
    try:
        lock = Lock(run_dir / "broker.lock")
    except BlockingIOError:
        raise ConfigError(f"state.run_dir: another broker runs in {run_dir}") from None
    try:
        raise_descriptor_limit()
        keep_freed_memory()
        server = _Server(config, state, bind_port, on_shutdown)
        try:
            ready(server.endpoint)
            server.loop()
        finally:
            server.close()
    finally:
        lock.release()
    return 0


class _Server:
    """Sockets, clocks and processes round a `Broker`; it is the broker's `Shell`."""

    def __init__(
        self, config: RouterConfig, state: FilePath, bind_port: int | None, on_shutdown: Callable[[], None] | None
    ) -> None:
        self._config = config
        self._epoll = select.epoll()
        self._urgent = select.epoll()
        """Everything but agents. `_epoll` watches it, too."""
        self._outside = select.epoll()
        """Connections whose peers are not accepted as agents. Likewise."""
        self._epoll.register(self._urgent, select.EPOLLIN)
        self._handles: dict[int, Callable[[float], None]] = {}
        self._watched: dict[int, select.epoll] = {}
        """By descriptor, who watches it."""
        self._work = 0
        self._busy_until = 0.0
        self._strangers = Strangers()
        self._sweeping = False
        self._ports: set[Port] = set()
        self._written: list[Port] = []
        """Those with something to be flushed."""
        self._unfinished: dict[Port, None] = {}
        """Those with more to be moved, in order."""
        self._closing: list[Port] = []
        self._held: Unfinished[Port] = Unfinished()
        self._stop = self._drain = self._closed = False
        self._lag = Lag()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        gc.disable()
        database = state / "router.sqlite"
        try:
            saved = open_store(database)
        except OSError as error:
            raise ConfigError(f"state.dir: {database} cannot be used: {error.strerror or error}") from error
        self._store = Store(database, self._wake)
        self._env = Env(
            settings=settings_of(config, state),
            shell=self,
            store=self._store,
            wall=time.time,
            new_uid=lambda: uuid.uuid4().hex,
            incarnation=uuid.uuid4().hex,
        )
        self._dialling = Dialling(
            self._env.timers,
            self._wake,
            self._register_write,
            self._unregister,
            self._dialled,
            self._not_dialled,
            self._troubled,
        )
        self._access = watch_access(config, state, self._wake)
        self._broker = Broker(self._env, saved, time.monotonic())
        self._broker.gate.bind = self._access.bind
        self._broker.access_changed(self._access.rules, time.monotonic())
        self._access.changed = self._access_changed
        self._broker.extra_stats = self._stats
        self._store.on_renewed = self._broker.rewriting.begin
        if on_shutdown is not None:
            self._broker.on_shutdown = on_shutdown
        self._watch_signals()
        self._register(self._wake_read, self._woken)
        self._watch_fd(self._outside.fileno(), self._hear_strangers, self._epoll, select.EPOLLIN)
        self._workers = open_local_door(broker_endpoint(config))
        self._register(self._workers.fd, partial(self._take, self._workers))
        self._access.start()
        self._agents = self._open_agents_door(bind_port) if config.server.enabled else None
        self.endpoint = self._agents.endpoint if self._agents is not None else ""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT)
        gc.enable()
        log.info("event=broker_started router=%s agents=%s", self._env.settings.uid, self.endpoint or "none")

    # -- the loop -------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Receive, then what is due, then send; until told to stop."""
        broker, timers = self._broker, self._env.timers
        events: list[tuple[int, int]] = []
        self._flush(time.monotonic())
        while not (self._stop or broker.stopping):
            deadline = timers.deadline()
            now = time.monotonic()
            timeout = -1 if deadline is None else max(0.0, deadline - now)
            if self._unfinished:
                timeout = 0
            elif timeout != 0 and len(events) < _AT_ONCE and self._quiet(now):
                self._urgent.poll(_GATHER)
            before = time.monotonic()
            events = self._epoll.poll(timeout, _AT_ONCE)
            now = time.monotonic()
            if timeout >= 0 and now - before - timeout > LATE:
                broker.excuse(now - before - timeout, now)
            broker.heartbeats.behind = len(events) == _AT_ONCE
            for fd, _events in (*self._urgent.poll(0), *events):
                handle = self._handles.get(fd)
                if handle is not None:
                    self._guard(handle, now)
            for port in list(self._unfinished):
                self._guard(partial(self._pump, port), now)
            self._guard(broker.turn, now)
            self._guard(self._flush, now)
            self._guard(self._flush_ports, now)
            ended = self._lag.turned(now, time.monotonic())
            if ended - now > LATE:
                broker.excuse(ended - now, ended)

    def _quiet(self, now: float) -> bool:
        """Whether only signs of life pass, and those of many agents: some may gather (and seem later than they are)."""
        work = self._env.switch.routed + self._broker.service.calls
        if work != self._work:
            self._work = work
            self._busy_until = now + _BUSY
        return now >= self._busy_until and len(self._broker.links) > _FEW

    def close(self) -> None:
        """Say goodbye, and leave nothing behind."""
        self._broker.farewell("restart")
        self._flush(time.monotonic())
        for door in (self._workers, self._agents):
            if door is not None:
                door.close()
        self._flush_ports(time.monotonic())
        deadline = time.monotonic() + _LINGER
        for port in self._ports:
            port.close(max(0.0, deadline - time.monotonic()))
        for epoll in (self._epoll, self._urgent, self._outside):
            epoll.close()
        self._store.close()
        self._access.close()
        signal.set_wakeup_fd(-1)
        self._closed = True
        os.close(self._wake_read)
        os.close(self._wake_write)
        log.info("event=broker_stopped router=%s", self._env.settings.uid)

    # -- connections --------------------------------------------------------------------------------------------------

    def _open_agents_door(self, bind_port: int | None) -> Door:
        server = self._config.server
        wanted = bind_port if bind_port is not None else server.port
        try:
            door = open_tcp_door(server.interface, wanted)
        except OSError as error:
            raise ConfigError(
                f"server.interface, server.port: cannot listen on {server.interface}:{wanted}: {error}"
            ) from error
        self._register(door.fd, partial(self._take, door), urgent=False)
        return door

    def _take(self, door: Door, now: float) -> None:
        """Peers have connected; they say who they are in their first messages."""
        local = door is self._workers
        try:
            for _ in range(_TAKEN):
                sock = door.take()
                if sock is None:
                    break
                port = Port(self._written, local=local)
                if self._connected(port, sock, b"ROUTER", b"DEALER") and not local:
                    self._strangers.opened(port, now)
        except OSError as error:
            log.error("event=accept_failed error=%r", str(error))
            self._unregister(door.fd)
            again = partial(self._take, door)
            self._env.timers.at(now + _ACCEPT_PAUSE, lambda _: self._register(door.fd, again, urgent=local))
        self._end_strangers(now)
        if self._strangers and not self._sweeping:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """End the connections of those that have not been accepted in time, for as long as there are any."""
        self._end_strangers(now)
        self._sweeping = bool(self._strangers)
        if self._sweeping:
            self._env.timers.at(now if self._strangers.due(now) else now + 1, self._sweep)

    def _end_strangers(self, now: float) -> None:
        for port in self._strangers.take_due(now):
            self._shut(port)

    def _dialled(self, port: Port, sock: socket.socket, now: float) -> None:
        """An agent that listens was reached; its port has a path already."""
        if not self._connected(port, sock, b"DEALER", b"ROUTER") and port.path is not None:
            self._broker.disconnected(port.path, now)

    def _not_dialled(self, port: Port, now: float) -> None:
        """An agent that listens could not be reached."""
        if port.path is not None:
            self._broker.disconnected(port.path, now)

    def _troubled(self, port: Port, text: str) -> None:
        if port.path is not None:
            self._broker.dials.troubled(port.path, text)

    def _connected(self, port: Port, sock: socket.socket, kind: bytes, peer: bytes) -> bool:
        """Give a port its socket; whether the peer is still there."""
        try:
            port.connected(sock, kind, peer, self._env.settings.bounds.hello_bytes)
        except OSError as error:
            log.debug("event=peer_vanished error=%r", str(error))
            sock.close()
            return False
        self._ports.add(port)
        agents = self._epoll if port.path is not None else self._outside
        self._watch_fd(port.fd, partial(self._pump, port), self._urgent if port.local else agents, select.EPOLLIN)
        return True

    def _shut(self, port: Port) -> None:
        self._unregister(port.fd)
        self._ports.discard(port)
        self._unfinished.pop(port, None)
        self._strangers.gone(port)
        port.close()
        if self._held.let_go(port):
            # What failed may refer to it until it is dealt with.
            self._env.timers.at(self._env.now + 0.1, lambda _: give_back_memory())

    # -- what arrives -----------------------------------------------------------------------------------------------

    def _hear_strangers(self, now: float) -> None:
        """Some of those that are not accepted have said something."""
        for fd, _events in self._outside.poll(0, _STRANGERS_AT_ONCE):
            handle = self._handles.get(fd)
            if handle is not None:
                self._guard(handle, now)

    def _pump(self, port: Port, now: float) -> None:
        """Something arrived, or waits to be moved, or can be sent."""
        try:
            port.pump(self._env.switch, now, self._control, self)
        except (OSError, ProtocolError) as error:
            log.debug("event=peer_disconnected fd=%d error=%r", port.fd, str(error))
            path = port.path
            self._shut(port)
            if isinstance(error, ProtocolError):
                self._broker.malformed(path, error)
                self._troubled(port, f"no agent listens there: {error.detail}")
            if path is not None:
                self._broker.disconnected(path, now)
            self._flush(now)
            return
        if port.unfinished and not port.paused:
            self._unfinished[port] = None
        elif self._unfinished:
            self._unfinished.pop(port, None)
        if port.watched_for_writing:
            self._written.append(port)
        if not port.local:
            self._held.holds(port, port.held)
            self._bound_held(now)

    def _bound_held(self, now: float) -> None:
        """Cut off who leaves too much of a message unfinished, once too much is."""
        while (port := self._held.too_much()) is not None:
            path = port.path
            log.warning("event=message_unfinished bytes=%d held=%d", port.held, self._held.total)
            self._shut(port)
            if path is not None:
                self._broker.unfinished(path, now)
            self._flush(now)

    def _control(self, port: Port, parts: Sequence[bytes], now: float) -> None:
        """A message to the broker itself; its answers leave before anything else is moved, so that order is kept.

        Raises:
            ProtocolError: of a peer that is not accepted.
        """
        try:
            frames = decode([bytes(part) for part in parts])
            if port.path is not None:
                self._broker.receive(port.path, frames, now)
            elif not frames:
                raise ProtocolError("an empty message")
            elif port.local:
                self._broker.worker_stranger(port, port.identity, frames, now)
            else:
                self._broker.agent_stranger(port, port.identity, frames, now)
        except ProtocolError as error:
            if port.path is None:
                raise
            self._broker.malformed(port.path, error)
        except Exception:
            log.exception("event=message_failed peer=%.64r", port.identity)
            self._env.counts["failures"] += 1
        self._flush(now)

    def unreachable(self, target: Path, now: float) -> None:
        """See `Routing`."""
        self._broker.disconnected(target, now)
        self._flush(now)

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        """See `Routing`."""
        self._broker.overflowed(source, size, now)
        self._flush(now)

    def _woken(self, now: float) -> None:
        """The store has committed something, or a signal arrived."""
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            log.debug("event=woken_for_nothing")
        self._env.now = now
        if self._drain:
            self._broker.drain()
        self._dialling.turn(now)
        for done in self._store.take_done(self._env.settings.bounds.turn):
            self._guard(done, now)
        for done in self._access.take_done():
            self._guard(done, now)
        self._flush(now)

    def _access_changed(self, rules: Rules, pair: KeyPair, now: float) -> None:
        """Keys or invitations are other ones; `pair` is the router's own from now on."""
        self._broker.access_changed(rules, now)

    def _worker_ended(self, pidfd: int, uid: str, now: float) -> None:
        self._unregister(pidfd)
        os.close(pidfd)
        self._broker.worker_died(uid, now)
        self._flush(now)

    # -- what leaves ------------------------------------------------------------------------------------------------

    def _flush(self, now: float) -> None:
        outbox = self._env.outbox
        while outbox:
            for path in outbox.take():
                port: Port = path.carrier
                if not port.send(path):
                    self._broker.disconnected(path, now)

    def _flush_ports(self, now: float) -> None:
        """Send what this turn has for each peer, in one piece; then close what is not used any more."""
        while self._written:
            written, self._written[:] = self._written[:], ()
            for port in written:
                port.flush()
                if port.blocked != port.watched_for_writing and not port.closed:
                    port.watched_for_writing = port.blocked
                    self._watched[port.fd].modify(port.fd, _events(port))
                relieved = port.relieved(now)
                if relieved and port.path is not None:
                    self._broker.relieved(port.path, relieved, now)
            self._flush(now)
        closing, self._closing = self._closing, []
        for port in closing:
            self._shut(port)

    def _guard(self, handle: Callable[[float], None], now: float) -> None:
        """A mistake in handling one thing must not end everything."""
        try:
            handle(now)
        except Exception:
            log.exception("event=turn_failed")
            self._env.counts["failures"] += 1

    # -- Shell --------------------------------------------------------------------------------------------------------

    def accept(self, path: Path) -> None:
        """The peer behind this connection is known."""
        port: Port = path.carrier
        port.accept(path)
        self._strangers.gone(port)
        if self._watched.get(port.fd) is self._outside:
            self._outside.unregister(port.fd)
            self._epoll.register(port.fd, _events(port))
            self._watched[port.fd] = self._epoll

    def dial(self, path: Path, address: str) -> None:
        """A connection to an agent that listens."""
        path.carrier = port = Port(self._written)
        port.path = path
        host, number = split_address(address)
        self._dialling.dial(port, host, number)

    def security(self, path: Path) -> Security:
        """How the path's connection is protected."""
        port: Port = path.carrier
        return port.security

    def forget(self, path: Path) -> None:
        """The path is not used any more; what is pending on it is sent first."""
        port: Port = path.carrier
        port.leaving = True
        self._closing.append(port)

    def pause(self, path: Path, seconds: float) -> None:
        """Read nothing more of a peer for a while."""
        port: Port = path.carrier
        if not port.paused and not port.closed:
            port.paused = True
            self._unfinished.pop(port, None)
            self._watched[port.fd].modify(port.fd, _events(port))
            self._env.timers.at(self._env.now + seconds, partial(self._go_on_reading, port))

    def _go_on_reading(self, port: Port, now: float) -> None:
        port.paused = False
        if port.closed:
            return
        self._watched[port.fd].modify(port.fd, _events(port))
        if port.path is not None:
            port.path.heard = max(port.path.heard, now)
        self._pump(port, now)

    def watch(self, pid: int, worker: str) -> None:
        """Notice at once when a worker's process ends. Where that is not possible its silence has to do."""
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError) as error:
            log.info("event=worker_not_watched worker=%s pid=%d error=%r", worker, pid, str(error))
            return
        self._register(pidfd, lambda now: self._worker_ended(pidfd, worker, now))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _register(self, fd: int, handle: Callable[[float], None], *, urgent: bool = True) -> None:
        self._watch_fd(fd, handle, self._urgent if urgent else self._epoll, select.EPOLLIN)

    def _register_write(self, fd: int, handle: Callable[[float], None]) -> None:
        self._watch_fd(fd, handle, self._epoll, select.EPOLLOUT)

    def _watch_fd(self, fd: int, handle: Callable[[float], None], epoll: select.epoll, events: int) -> None:
        epoll.register(fd, events)
        self._handles[fd] = handle
        self._watched[fd] = epoll

    def _unregister(self, fd: int) -> None:
        """Watch it no more, if it is watched."""
        if self._handles.pop(fd, None) is not None:
            self._watched.pop(fd).unregister(fd)

    def _wake(self) -> None:
        if self._closed:
            return  # A thread is late; the descriptor may be somebody else's.
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return

    def _watch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _signalled(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self._drain = True
        else:
            self._stop = True

    def _stats(self) -> dict[str, float]:
        return {
            **process_figures(),
            "strangers": len(self._strangers),
            "total.strangers_cut": self._strangers.cut,
            "loop.lag_max_seconds": self._lag.longest,
            "loop.lag_avg_seconds": self._lag.average,
            "loop.turns": self._lag.turns,
            "store.backlog": self._store.backlog,
            "store.failures": self._store.failures,
            "store.written": self._store.written,
        }


def _events(port: Port) -> int:
    reading = 0 if port.paused else select.EPOLLIN
    return reading | select.EPOLLOUT if port.watched_for_writing else reading
