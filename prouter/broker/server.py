"""The broker's process: the only place with sockets, clocks and other processes. One loop, nothing in it blocks."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path as FilePath
from typing import Any

import zmq

from prouter.broker.core import Broker
from prouter.broker.env import Env
from prouter.broker.lag import Lag, process_figures
from prouter.broker.local_port import LocalListener, LocalPort
from prouter.broker.ports import Port, bind_endpoint
from prouter.broker.startup import settings_of
from prouter.broker.store import Store, open_store
from prouter.broker.strangers import Strangers
from prouter.broker.switch import Path
from prouter.config import ConfigError, RouterConfig
from prouter.descriptors import raise_descriptor_limit
from prouter.directories import Lock, broker_endpoint
from prouter.errors import ProtocolError
from prouter.fabric.frames import decode
from prouter.transport.memory import keep_freed_memory

__all__ = ["run"]

log = logging.getLogger("prouter.broker")

_PENDING_FDS = 4096
_LAST_WORDS = 100
"""Batches of messages read before a closed connection is acted upon."""
_BUSY = 0.25
"""Seconds after the last request or byte for which nothing is let wait."""
_GATHER = 10
"""Milliseconds for which signs of life from agents may gather otherwise."""
_FEW = 64
"""Agents whose signs of life are looked at one by one."""
_COLLECT = (20_000, 20, 50)
"""Thresholds of garbage collection: a full one takes longer than the loop should keep anybody waiting."""
_ACCEPT_PAUSE = 0.1
"""Seconds to wait when a worker's connection cannot be taken for lack of descriptors."""
_LINGER = 500
"""Milliseconds that last words have to leave."""


def run(
    config: RouterConfig,
    *,
    bind_port: int | None = None,
    ready: Callable[[str], None],
    on_shutdown: Callable[[], None] | None = None,
) -> int:
    """Run the broker until SIGTERM, SIGINT or a worker's ``shutdown`` call; the process's exit status. SIGUSR1 drains.

    Args:
        config: with its directories filled in (`prouter.directories.locate_router`).
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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._urgent = zmq.Poller()
        self._work = 0
        self._busy_until = 0.0
        self._ready: dict[object, Callable[[float], None]] = {}
        self._fds: dict[int, Path] = {}
        self._strangers: OrderedDict[bytes, int] = OrderedDict()
        self._unknown = Strangers()
        self._sweeping = False
        self._closing: list[Port | LocalPort] = []
        self._cut: list[Path] = []
        self._ports: list[Port | LocalPort] = []
        self._written: list[LocalPort] = []
        """Connections of workers with something to be flushed."""
        self._stop = self._drain = False
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
        self._broker = Broker(self._env, saved, time.monotonic())
        self._broker.extra_stats = self._stats
        self._store.on_renewed = self._broker.rewriting.begin
        if on_shutdown is not None:
            self._broker.on_shutdown = on_shutdown
        self._watch_signals()
        self._register(self._wake_read, self._woken)
        self._workers = LocalListener(FilePath(broker_endpoint(config).removeprefix("ipc://")), self._written)
        self._register(self._workers.fd, self._worker_connected)
        self._agents = self._open(zmq.ROUTER)
        self.endpoint = self._bind(bind_port) if config.server.enabled else ""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT)
        gc.enable()
        log.info("event=broker_started router=%s agents=%s", self._env.settings.uid, self.endpoint or "none")

    # -- the loop -------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Receive, then what is due, then send; until told to stop."""
        broker, timers = self._broker, self._env.timers
        self._flush(time.monotonic())
        while not (self._stop or broker.stopping):
            deadline = timers.deadline()
            now = time.monotonic()
            timeout = None if deadline is None else max(0, ceil((deadline - now) * 1000))
            if self._quiet(now) and timeout != 0:
                self._urgent.poll(_GATHER)
            ready = self._poller.poll(timeout)
            now = time.monotonic()
            for source, _events in ready:
                handle = self._ready.get(source)
                if handle is not None:
                    self._guard(handle, now)
            if self._cut:
                self._closed_connections(self._agents, now)
            self._guard(broker.turn, now)
            self._flush(now)
            self._flush_local()
            self._close_unused()
            self._lag.turned(now, time.monotonic())

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
        self._workers.close()
        for port in self._ports:
            port.close(_LINGER)
        self._context.term()
        self._store.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wake_read)
        os.close(self._wake_write)
        log.info("event=broker_stopped router=%s", self._env.settings.uid)

    # -- what arrives -----------------------------------------------------------------------------------------------

    def _control(self, port: Port | LocalPort, rid: bytes, path: Path | None, parts: Sequence[Any], now: float) -> None:
        """A message to the broker itself; its answers leave before anything else is moved, so that order is kept."""
        try:
            if path is None:
                self._stranger(port, rid, parts, now)
            else:
                self._broker.receive(path, decode([bytes(part) for part in parts]), now)
        except ProtocolError as error:
            self._broker.malformed(path, error)
        except zmq.ZMQError:
            raise
        except Exception:
            log.exception("event=message_failed peer=%.64r", rid)
            self._env.counts["failures"] += 1
        self._flush(now)

    def _stranger(self, port: Port | LocalPort, rid: bytes, parts: Sequence[Any], now: float) -> None:
        if sum(len(part) for part in parts) > self._env.settings.bounds.hello_bytes:
            raise ProtocolError("the introduction is too long")
        frames = decode([bytes(part) for part in parts])
        if not frames:
            raise ProtocolError("an empty message")
        if isinstance(port, LocalPort):
            self._broker.worker_stranger(port, rid, frames, now)
            return
        self._strangers[rid] = int(parts[0].get(zmq.SRCFD))
        if len(self._strangers) > _PENDING_FDS:
            self._strangers.popitem(last=False)
        self._broker.agent_stranger(port, rid, frames, now)

    def _unreachable(self, path: Path, now: float) -> None:
        self._broker.disconnected(path, now)
        self._flush(now)

    def _connections_changed(self, port: Port, now: float) -> None:
        """Connections of agents were taken or closed."""
        self._hear_of_connections(port, now)
        if self._cut:
            self._closed_connections(port, now)

    def _closed_connections(self, port: Port, now: float) -> None:
        """Connections of agents that were closed: after their last words, who used them is gone or dials again."""
        for _ in range(_LAST_WORDS):
            if port.pump(self._env.switch, now, self._control, self._unreachable):
                break
        cut, self._cut = self._cut, []
        for path in cut:
            self._broker.disconnected(path, now)
        self._flush(now)

    def _hear_of_connections(self, port: Port, now: float) -> None:
        """Find out whose connections were closed, before their descriptors' numbers are used again."""
        for fd, opened in port.connection_news():
            if opened:
                self._unknown.opened(fd, now)
                continue
            self._unknown.gone(fd)
            path = self._fds.pop(fd, None) if port.router else port.paths.get(b"")
            if path is not None and path.carrier is port:
                self._cut.append(path)
        self._unknown.sweep(now)
        if self._unknown and not self._sweeping:
            self._sweeping = True
            self._env.timers.at(now if self._unknown.due(now) else now + 1, self._sweep)

    def _sweep(self, now: float) -> None:
        self._sweeping = False
        self._connections_changed(self._agents, now)

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
        for done in self._store.take_done(self._env.settings.bounds.turn):
            self._guard(done, now)
        self._flush(now)

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
                port: Port | LocalPort = path.carrier
                if not port.send(path):
                    self._broker.disconnected(path, now)

    def _close_unused(self) -> None:
        closing, self._closing = self._closing, []
        for port in closing:
            self._shut(port)

    def _guard(self, handle: Callable[[float], None], now: float) -> None:
        """A mistake in handling one thing must not end everything; a broken socket must: a new process may have it."""
        try:
            handle(now)
        except zmq.ZMQError:
            raise
        except Exception:
            log.exception("event=turn_failed")
            self._env.counts["failures"] += 1

    # -- Shell --------------------------------------------------------------------------------------------------------

    def accept(self, path: Path) -> None:
        """Messages of this routing id are this path's."""
        port: Port | LocalPort = path.carrier
        fd = self._strangers.pop(path.rid, None) if port is self._agents else None
        port.paths[path.rid] = path
        if fd is not None:
            self._hear_of_connections(self._agents, self._env.now)
            self._unknown.gone(fd)
            self._fds[fd] = path

    def dial(self, path: Path, address: str) -> None:
        """A socket of its own, connected to an agent that listens."""
        path.carrier = port = self._open(zmq.DEALER)
        port.paths[b""] = path
        host, _, number = address.rpartition(":")
        port.socket.setsockopt(zmq.IPV6, int(":" in host))
        try:
            port.socket.connect(f"tcp://{host}:{number}")
        except zmq.ZMQError as error:
            log.warning("event=dial_failed address=%s error=%r", address, str(error))

    def forget(self, path: Path) -> None:
        """The path is not used any more."""
        port: Port | LocalPort = path.carrier
        if port.paths.get(path.rid) is path:
            del port.paths[path.rid]
        if not port.router:
            self._closing.append(port)

    def watch(self, pid: int, worker: str) -> None:
        """Notice at once when a worker's process ends. Where that is not possible its silence has to do."""
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError) as error:
            log.info("event=worker_not_watched worker=%s pid=%d error=%r", worker, pid, str(error))
            return
        self._register(pidfd, lambda now: self._worker_ended(pidfd, worker, now))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self, kind: int) -> Port:
        port = Port(self._context, kind)
        self._ports.append(port)
        switch, control, unreachable = self._env.switch, self._control, self._unreachable

        def pump(now: float) -> None:
            port.pump(switch, now, control, unreachable)

        self._register(port.socket, pump, urgent=False)
        self._register(port.monitor, lambda now: self._connections_changed(port, now), urgent=False)
        return port

    def _worker_connected(self, now: float) -> None:
        """Workers have connected; they say who they are in their first messages."""
        try:
            while (port := self._workers.accept()) is not None:
                self._ports.append(port)
                self._register(port.fd, partial(self._pump_local, port))
        except OSError as error:
            log.error("event=accept_failed error=%r", str(error))
            self._unregister(self._workers.fd)
            self._env.timers.at(now + _ACCEPT_PAUSE, lambda _: self._register(self._workers.fd, self._worker_connected))

    def _pump_local(self, port: LocalPort, now: float) -> None:
        try:
            port.pump(self._env.switch, now, self._control, self._unreachable)
        except (OSError, ProtocolError) as error:
            log.debug("event=worker_disconnected fd=%d error=%r", port.fd, str(error))
            path = port.paths.get(b"")
            self._shut(port)
            if path is not None:
                self._broker.disconnected(path, now)
            return
        if port.blocked:
            self._written.append(port)

    def _flush_local(self) -> None:
        """Send to workers what this turn has for them, in one piece each."""
        for port in self._written:
            port.flush()
            if port.blocked != port.waits and port.fd >= 0:
                port.waits = port.blocked
                self._poller.register(port.fd, zmq.POLLIN | zmq.POLLOUT if port.waits else zmq.POLLIN)
        self._written.clear()

    def _shut(self, port: Port | LocalPort) -> None:
        if port not in self._ports:
            return
        self._ports.remove(port)
        if isinstance(port, LocalPort):
            self._unregister(port.fd)
        else:
            self._unregister(port.socket)
            self._unregister(port.monitor)
        port.close(_LINGER)

    def _bind(self, bind_port: int | None) -> str:
        server = self._config.server
        wanted = bind_port if bind_port is not None else server.port
        self._agents.socket.setsockopt(zmq.IPV6, int(":" in server.interface))
        try:
            self._agents.socket.bind(bind_endpoint(server.interface, wanted))
        except zmq.ZMQError as error:
            raise ConfigError(
                f"server.interface, server.port: cannot listen on {server.interface}:{wanted}: {error}"
            ) from error
        return self._agents.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _register(self, source: object, handle: Callable[[float], None], *, urgent: bool = True) -> None:
        self._ready[source] = handle
        self._poller.register(source, zmq.POLLIN)
        if urgent:
            self._urgent.register(source, zmq.POLLIN)

    def _unregister(self, source: object) -> None:
        if self._ready.pop(source, None) is not None:
            self._poller.unregister(source)
            if source in self._urgent:
                self._urgent.unregister(source)

    def _wake(self) -> None:
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
            "strangers": len(self._unknown),
            "total.strangers_cut": self._unknown.cut,
            "loop.lag_max_seconds": self._lag.longest,
            "loop.lag_avg_seconds": self._lag.average,
            "loop.turns": self._lag.turns,
            "store.backlog": self._store.backlog,
            "store.failures": self._store.failures,
            "store.written": self._store.written,
        }
