"""Connections of the agent to its jobs' servers: it opens them, and ends them when their job has ended."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent import get_hub
from gevent.socket import wait_write

from prouter.agent.expose.probe import Address
from prouter.agent.expose.servers import Identity, Servers
from prouter.agent.relays.http import HttpRelay
from prouter.agent.relays.ports import NO_SUCH_PORT, PortRelay
from prouter.errors import NotFound
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, State
from prouter.processes.process_tree import is_exiting

__all__ = ["CONNECT_TIMEOUT", "Connections"]

log = logging.getLogger("prouter.agent.relays")

CONNECT_TIMEOUT = 10.0
"""Seconds that a job has to accept a connection."""
_TOO_LATE = f"the job did not take the connection within {CONNECT_TIMEOUT:g} s"
_HTTP = "http"
"""Name of the port where a job's HTTP server is."""
_SYN_SENT = 2
_ESTABLISHED = frozenset({1, 8})
"""States of TCP in which a connection is established: ESTABLISHED and CLOSE_WAIT (linux/tcp_states.h)."""
_RETRY = 0.02
"""Seconds between attempts at a unix socket whose backlog is full."""
_DYING = 1.0
"""Seconds to wait for the end of a job whose first process is exiting."""
_SWEEP = 1.0
"""Seconds between checks of connections that are being made, and of those of ended jobs."""


class Connections:
    """Relays by job. Every method runs on the event loop and does not block.

    Args:
        find: gives the record of a job; raises `NotFound`.
        servers: tells which connections have reached the job.
    """

    def __init__(self, find: Callable[[str], JobRecord], servers: Servers) -> None:
        self.loop = get_hub().loop
        self._find = find
        self._servers = servers
        self._by_job: dict[str, set[HttpRelay]] = {}
        self._unconfirmed: deque[tuple[float, HttpRelay]] = deque()
        self._retries: set[Any] = set()
        self._ended: dict[str, str] = {}
        self._dying: dict[str, list[HttpRelay]] = {}
        self._sweeper: Any = None

    def __len__(self) -> int:
        return sum(map(len, self._by_job.values()))

    def open(self, stream: Stream, job: str) -> None:
        """Connect `stream` to the job's server, or reset it with the reason."""
        try:
            record = self._find(job)
        except NotFound as error:
            stream.reset("no_job", error.detail)
            return
        if record.endpoint is None or record.state is not State.RUNNING:
            stream.reset("not_running", _why_not(record))
            return
        relay = HttpRelay(self, job, stream)
        self._add(relay)
        relay.connect(record.endpoint)
        self._expect(relay)

    def open_port(self, stream: Stream, job: str, port: Any) -> None:
        """Connect `stream` to a loopback port on which a process of the job listens, or reset it with the reason.

        Args:
            port: a number, or ``http`` for the job's server wherever it is.
        """
        try:
            record = self._find(job)
        except NotFound as error:
            stream.reset("no_job", error.detail)
            return
        if record.state is not State.RUNNING:
            stream.reset("not_running", _why_not(record))
            return
        endpoint = record.endpoint or {}
        relay = PortRelay(self, job, stream)
        self._add(relay)
        if endpoint and port in (_HTTP, endpoint.get("port")):
            relay.connect(endpoint)
        elif type(port) is int and 0 < port < 65536:
            gevent.spawn(self._connect_to, relay, port)
        else:
            named = f"; it has '{_HTTP}'" if endpoint else ""
            relay.end(NO_SUCH_PORT, f"job '{job}' has no port of that name{named}; others are named by their numbers")
        self._expect(relay)

    def _connect_to(self, relay: PortRelay, port: int) -> None:
        """Connect to wherever the job listens on a port."""
        try:
            address = self._servers.find(relay.job, port)
        except NotFound as error:
            if not relay.stream.closed and not self.job_dies(relay):
                relay.end(NO_SUCH_PORT, error.detail)
        except Exception:
            log.exception("event=look_failed job=%s", relay.job)
            relay.end(NO_SUCH_PORT, f"the agent cannot find out whose port {port} is")
        else:
            if not relay.stream.closed:
                relay.connect(address.endpoint())

    def _add(self, relay: HttpRelay) -> None:
        relay.stream.handler = relay
        relays = self._by_job.get(relay.job)
        if relays is None:
            relays = self._by_job[relay.job] = set()
        relays.add(relay)

    def _expect(self, relay: HttpRelay) -> None:
        """Limit how long a connection may take."""
        if not relay.confirmed and not relay.stream.closed:
            self._unconfirmed.append((time.monotonic() + CONNECT_TIMEOUT, relay))
            self._sweep_later()

    def admit(self, relay: HttpRelay, connection: socket.socket, endpoint: dict[str, Any]) -> None:
        """Let `relay` use a new connection once it has reached the job; end the relay if it has reached another."""
        address = Address.of(endpoint)
        state = _state(connection)
        if state in _ESTABLISHED:
            try:
                identity = self._servers.identify(connection, address)
            except OSError as error:
                log.debug("event=connection_ended job=%s error=%r", relay.job, str(error))
                relay.connected(connection)  # It says so, too.
                return
            if self._servers.knows(relay.job, address, identity):
                relay.connected(connection)
            else:
                gevent.spawn(self._examine, relay, connection, address, identity)
        elif state == _SYN_SENT:
            gevent.spawn(self._await_connection, relay, connection, endpoint)
        else:
            relay.connected(connection)  # It has failed, as it will notice.

    def _await_connection(self, relay: HttpRelay, connection: socket.socket, endpoint: dict[str, Any]) -> None:
        """Go on with a connection that the job's full backlog does not take yet."""
        try:
            wait_write(connection.fileno(), timeout=CONNECT_TIMEOUT, timeout_exc=TimeoutError())
        except TimeoutError:
            connection.close()
            if not relay.stream.closed:
                relay.end("connect_timeout", _TOO_LATE)
            return
        if relay.stream.closed:
            connection.close()
        else:
            self.admit(relay, connection, endpoint)

    def _examine(self, relay: HttpRelay, connection: socket.socket, address: Address, identity: Identity) -> None:
        """Decide about a connection that is not known to be the job's."""
        try:
            refusal = self._servers.refusal(relay.job, connection, address, identity)
        except Exception:
            log.exception("event=look_failed job=%s", relay.job)
            refusal = f"the agent cannot find out whose {address} is"
        if relay.stream.closed:
            connection.close()
        elif refusal:
            connection.close()
            if not self.job_dies(relay):
                relay.end("refused", refusal)
        else:
            relay.connected(connection)

    def retry(self, relay: HttpRelay, endpoint: dict[str, Any]) -> None:
        """Connect again after `_RETRY`, unless the stream is closed by then."""
        timer = self.loop.timer(_RETRY)
        self._retries.add(timer)

        def connect() -> None:
            self._retries.discard(timer)
            timer.close()
            if not relay.stream.closed:
                relay.connect(endpoint)

        timer.start(connect)

    def forget(self, relay: HttpRelay) -> None:
        """Drop a relay that has ended."""
        relays = self._by_job.get(relay.job)
        if relays is not None:
            relays.discard(relay)
            if not relays:
                del self._by_job[relay.job]

    def job_dies(self, relay: HttpRelay) -> bool:
        """Decide what the end of a job's connection means: a job that dies closes its connections, too.

        Returns:
            False if the job lives, so that the stream ends like the connection. True if this object ends the relay, now
            or once it is known how the job has ended.
        """
        try:
            record = self._find(relay.job)
        except NotFound:
            relay.end("job_ended", "the job was removed")
            return True
        if record.ended:
            _pass_ending(relay, record)
            return True
        if record.pid is None or not is_exiting(record.pid):
            return False
        self._dying.setdefault(relay.job, []).append(relay)
        self.loop.timer(_DYING).start(self._lives_on, relay)
        return True

    def _lives_on(self, relay: HttpRelay) -> None:
        """End the stream like the connection: the job goes on without its first process."""
        relays = self._dying.get(relay.job, [])
        if relay in relays:
            relays.remove(relay)
            relay.pass_end()

    def job_ended(self, record: JobRecord) -> None:
        """End the connections of a job that has ended.

        Most end by themselves: the kernel still holds what the job sent, and then the end of its sockets. A connection
        that another process keeps open is reset once there is nothing left to relay.
        """
        self._servers.forget(record.uid)
        for relay in self._dying.pop(record.uid, ()):
            _pass_ending(relay, record)
        if record.uid in self._by_job:
            self._ended[record.uid] = record.ending
            self._sweep_later()

    def close(self) -> None:
        """Reset the streams of all connections and close them."""
        for relays in list(self._by_job.values()):
            for relay in list(relays):
                relay.end("agent_gone", "the agent is shutting down")
        for timer in list(self._retries):
            timer.stop()
            timer.close()
        self._retries.clear()
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper.close()
            self._sweeper = None

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = self.loop.timer(_SWEEP)
            self._sweeper.start(self._sweep)

    def _sweep(self) -> None:
        self._sweeper.close()
        self._sweeper = None
        self._sweep_unconfirmed(time.monotonic())
        for job in list(self._ended):
            for relay in list(self._by_job.get(job, ())):
                if relay.exhausted():
                    relay.end("job_ended", self._ended[job])
            if job not in self._by_job:
                del self._ended[job]
        if self._unconfirmed or self._ended:
            self._sweep_later()

    def _sweep_unconfirmed(self, now: float) -> None:
        for _ in range(len(self._unconfirmed)):
            deadline, relay = self._unconfirmed.popleft()
            if relay.check_connected():
                continue
            if now >= deadline:
                relay.end("connect_timeout", _TOO_LATE)
            else:
                self._unconfirmed.append((deadline, relay))


def _pass_ending(relay: HttpRelay, record: JobRecord) -> None:
    """End a stream, with the reason if the job has failed."""
    if record.exit_code == 0:
        relay.pass_end()
    else:
        relay.end("job_ended", record.ending)


def _state(connection: socket.socket) -> int:
    """Return the state of a TCP connection, the first octet of TCP_INFO (tcp(7)); unix sockets connect at once."""
    if connection.family == socket.AF_UNIX:
        return 1
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _why_not(record: JobRecord) -> str:
    if record.ended:
        return record.ending
    if record.state is State.RUNNING:
        return f"job '{record.uid}' has no HTTP server"
    return f"job '{record.uid}' is not running yet: {record.state.value}"
