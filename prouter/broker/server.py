"""The broker's process: the only place with sockets, clocks and other processes. One loop, nothing in it blocks."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path as FilePath

from prouter.addresses import split_address
from prouter.broker.access.agent_keys import AgentKeys
from prouter.broker.access.gate import Rules
from prouter.broker.authority import CoreAuthority
from prouter.broker.base.env import Env
from prouter.broker.base.lag import Lag, process_figures
from prouter.broker.base.security import Security
from prouter.broker.base.switch import Path
from prouter.broker.base.watchdog import serve_watchdog
from prouter.broker.core import Broker
from prouter.broker.sockets.connections import Connections
from prouter.broker.sockets.dialling import Dialling
from prouter.broker.sockets.listeners import listen_for_agents, listen_for_local_agents, listen_for_workers
from prouter.broker.sockets.poller import Poller
from prouter.broker.sockets.port import Port
from prouter.broker.startup import settings_of, watch_access
from prouter.broker.store.opening import open_store
from prouter.broker.store.restore import Saved
from prouter.broker.store.store import Store
from prouter.config import ConfigError, RouterConfig, uses_curve
from prouter.config.directories import Lock, connections_version
from prouter.fabric.session import LATE
from prouter.key_pairs import KeyPair
from prouter.process.cores import forbid_core_dumps
from prouter.process.descriptors import raise_descriptor_limit
from prouter.process.memory import keep_freed_memory
from prouter.process.shared_version import VersionFile
from prouter.targets import Targets
from prouter.transport.zeromq.context import destroy_context
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zmtp.server_keys import ServerCurve
from prouter.transport.zmtp.tcp_listener import TcpListener

__all__ = ["run"]

log = logging.getLogger("prouter.broker")

_BUSY = 0.25
"""Seconds after the last request or byte for which nothing is let wait."""
_GATHER = 0.01
"""Seconds for which heartbeats of agents may gather otherwise."""
_FEW = 64
"""Agents whose heartbeats are looked at one by one."""
_COLLECT = (20_000, 20, 50)
"""Thresholds of garbage collection: a full one takes longer than the loop should keep anybody waiting."""
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
        forbid_core_dumps()
        descriptors = raise_descriptor_limit()
        keep_freed_memory()
        server = _Server(config, state, bind_port, on_shutdown, descriptors)
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
        self,
        config: RouterConfig,
        state: FilePath,
        bind_port: int | None,
        on_shutdown: Callable[[], None] | None,
        descriptors: int,
    ) -> None:
        self._config = config
        self._poller = Poller()
        self._work = 0
        self._busy_until = 0.0
        self._stop = self._drain = self._closed = False
        self._lag = Lag()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        gc.disable()
        database = state / "router.sqlite"
        saved = _opened(database)
        self._store = Store(database, self._wake)
        self._version = _version_file(config)
        self._env = Env(
            settings=settings_of(config, state),
            shell=self,
            store=self._store,
            wall=time.time,
            new_uid=lambda: uuid.uuid4().hex,
            incarnation=uuid.uuid4().hex,
        )
        self._access = watch_access(config, state, self._wake)
        self._pair = self._access.pair
        self._agent_keys = AgentKeys(config.client.agent_keys, insecure=config.client.insecure)
        self._agents: TcpListener | None = None
        self._authority = CoreAuthority(self._env)
        self._connections = Connections(self._env, self._poller, self._authority, self._guard, descriptors)
        self._dialling = Dialling(
            self._env.timers,
            self._wake,
            self._poller,
            self._connections.dialled,
            self._not_dialled,
            self._not_reached,
            self._not_allowed,
            Targets(config.control.allow_targets, lambda: (config.control.port, self._env.agents_port)),
        )
        self._broker = self._authority.broker = Broker(self._env, saved, time.monotonic())
        self._broker.gate.bind = self._access.bind
        self._broker.access_changed(self._access.rules, time.monotonic())
        self._access.changed = self._access_changed
        self._broker.extra_stats = self._stats
        self._store.on_renewed = self._broker.rewriting.begin
        self._store.on_opened = self._broker.rewriting.opened
        if on_shutdown is not None:
            self._broker.on_shutdown = on_shutdown
        self._watch_signals()
        self._poller.watch(self._wake_read, self._woken)
        self._access.start()
        serve_watchdog(self._env.timers, time.monotonic())
        self.endpoint = self._listen(bind_port)
        _settle_memory()
        log.info("event=broker_started router=%s agents=%s", self._env.settings.uid, self.endpoint or "none")

    def _listen(self, bind_port: int | None) -> str:
        """Accept workers and agents; where agents link over tcp, empty when they are not let in."""
        limit = self._env.settings.bounds.hello_bytes
        self._connections.listen(listen_for_workers(self._config, limit), workers=True)
        if not self._config.server.enabled:
            return ""
        local = listen_for_local_agents(self._config, limit)
        if local is not None:
            self._connections.listen(local, workers=False)
        curve = ServerCurve(self._access.pair, self._accepts_key) if uses_curve(self._config.server) else None
        self._agents = listen_for_agents(self._config, bind_port, curve, limit)
        self._connections.listen(self._agents, workers=False)
        self._env.agents_port = split_address(self._agents.endpoint.removeprefix("tcp://"))[1]
        return self._agents.endpoint

    # -- the loop -------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Receive, then what is due, then send; until told to stop."""
        broker, connections = self._broker, self._connections
        self._authority.flush(time.monotonic())
        while not (self._stop or broker.stopping):
            handles, now = self._wait()
            for handle in handles:
                self._guard(handle, now)
            connections.go_on(now)
            self._guard(broker.iterate, now)
            self._guard(self._authority.flush, now)
            self._guard(connections.flush, now)
            ended = self._lag.iterated(now, time.monotonic())
            if ended - now > LATE:
                broker.excuse(ended - now, ended)

    def _wait(self) -> tuple[list[Callable[[float], None]], float]:
        """Wait for the next event or timer; what to call, and the time."""
        deadline = self._env.timers.deadline()
        now = time.monotonic()
        timeout = -1 if deadline is None else max(0.0, deadline - now)
        busy = self._connections.busy
        if busy:
            timeout = 0
        elif timeout != 0 and not self._poller.full and self._quiet(now):
            self._poller.gather(_GATHER)
        before = time.monotonic()
        handles = self._poller.poll(timeout)
        now = time.monotonic()
        if timeout >= 0 and now - before - timeout > LATE:
            self._broker.excuse(now - before - timeout, now)
        self._broker.heartbeats.behind = self._poller.full or busy
        return handles, now

    def _quiet(self, now: float) -> bool:
        """Whether only heartbeats pass, and those of many agents: some may gather (and seem later than they are)."""
        work = self._env.switch.routed + self._broker.service.calls
        if work != self._work:
            self._work = work
            self._busy_until = now + _BUSY
        return now >= self._busy_until and len(self._broker.links) > _FEW

    def close(self) -> None:
        """Say goodbye, and leave nothing behind."""
        self._broker.farewell("restart")
        self._authority.flush(time.monotonic())
        self._connections.close(_LINGER)
        destroy_context(_LINGER)
        self._poller.close()
        self._broker.ledger.table.history.close()
        self._store.close()
        self._access.close()
        self._version.close()
        signal.set_wakeup_fd(-1)
        self._closed = True
        os.close(self._wake_read)
        os.close(self._wake_write)
        log.info("event=broker_stopped router=%s", self._env.settings.uid)

    # -- events of the process ----------------------------------------------------------------------------------------

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
        for done in self._store.take_done(self._env.settings.bounds.iteration):
            self._guard(done, now)
        for done in self._access.take_done():
            self._guard(done, now)
        self._authority.flush(now)

    def _accepts_key(self, key: str) -> bool:
        """Whether an agent with this public key gets through the handshake."""
        return self._broker.gate.accepts(key, self._env.wall())

    def _access_changed(self, rules: Rules, pair: KeyPair, now: float) -> None:
        """Keys or invitations are other ones; `pair` is the router's own from now on."""
        if self._agents is not None:
            self._agents.change_key(pair)
        self._pair = pair
        self._broker.access_changed(rules, now)

    def _worker_ended(self, pidfd: int, uid: str, now: float) -> None:
        self._poller.unwatch(pidfd)
        os.close(pidfd)
        self._broker.worker_died(uid, now)
        self._authority.flush(now)

    def _guard(self, handle: Callable[[float], None], now: float) -> None:
        """A mistake in handling one thing must not end everything."""
        try:
            handle(now)
        except Exception:
            log.exception("event=turn_failed")
            self._env.counts["failures"] += 1

    def _not_dialled(self, port: Port, now: float) -> None:
        """An agent that listens could not be reached."""
        if port.path is not None:
            self._broker.disconnected(port.path, now)

    def _not_allowed(self, port: Port, text: str, now: float) -> None:
        """An agent that listens must not be connected to."""
        if port.path is not None:
            self._broker.dials.forbidden(port.path, text, now)
            self._authority.flush(now)

    def _not_reached(self, port: Port, text: str) -> None:
        """Why one address of an agent that listens could not be reached."""
        if port.path is not None:
            self._broker.dials.troubled(port.path, text)

    # -- Shell --------------------------------------------------------------------------------------------------------

    def accept(self, path: Path) -> None:
        """The peer behind this connection is authenticated."""
        self._connections.accept(path)

    def dial(self, path: Path, address: str) -> None:
        """A connection to an agent that listens."""
        path.carrier = port = Port(self._connections.written)
        port.path = path
        host, number = split_address(address)
        key = self._agent_keys.of(address)
        self._dialling.dial(port, host, number, ClientCurve(key, self._pair) if key is not None else None)

    def why_not_dialled(self, address: str) -> str:
        """Why the agent at ``host:port`` must not be dialled; empty when it may."""
        return self._agent_keys.why_not(address)

    def security(self, path: Path) -> Security:
        """How the path's connection is protected."""
        port: Port = path.carrier
        return port.security

    def is_open(self, path: Path) -> bool:
        """Whether the path's connection is open, as far as is known."""
        port: Port = path.carrier
        return not (port.closed or port.leaving)

    def forget(self, path: Path) -> None:
        """The path is not used any more; what is pending on it is sent first."""
        self._connections.forget(path)

    def pause(self, path: Path, seconds: float) -> None:
        """Read nothing more of a peer for a while."""
        self._connections.pause(path, seconds)

    def watch(self, pid: int, worker: str) -> None:
        """Notice at once when a worker's process ends. Where that is not possible its silence has to do."""
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError) as error:
            log.info("event=worker_not_watched worker=%s pid=%d error=%r", worker, pid, str(error))
            return
        self._poller.watch(pidfd, lambda now: self._worker_ended(pidfd, worker, now))

    def raise_version(self) -> int:
        """Raise the version of the list of connections that workers see at once, and return it."""
        return self._version.increment()

    # -- inside -------------------------------------------------------------------------------------------------------

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
            "strangers": self._connections.unauthenticated_count,
            "total.strangers_cut": self._connections.cut,
            "loop.lag_max_seconds": self._lag.longest,
            "loop.lag_avg_seconds": self._lag.average,
            "loop.turns": self._lag.iterations,
            "store.backlog": self._store.backlog,
            "store.failures": self._store.failures,
            "store.written": self._store.written,
        }


def _settle_memory() -> None:
    """Take everything that was made so far out of garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    gc.enable()


def _opened(database: FilePath) -> Saved:
    """Open the database of the job table.

    Raises:
        ConfigError: it cannot be used.
    """
    try:
        return open_store(database)
    except OSError as error:
        raise ConfigError(f"state.dir: {database} cannot be used: {error.strerror or error}") from error


def _version_file(config: RouterConfig) -> VersionFile:
    """Take over the file of the last broker, whose lists are old from now on.

    Raises:
        ConfigError: it cannot be used.
    """
    path = connections_version(config)
    try:
        return VersionFile(path)
    except OSError as error:
        raise ConfigError(f"state.run_dir: {path} cannot be used: {error.strerror or error}") from error
