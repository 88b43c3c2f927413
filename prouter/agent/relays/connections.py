"""Connections of the agent to its jobs' servers: it opens them, and ends them when their job has ended."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent import get_hub

from prouter.agent.relays.http import HttpRelay
from prouter.agent.relays.ports import NO_SUCH_PORT, PortRelay
from prouter.errors import JobUnreachable, NotFound, PRouterError
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, State
from prouter.runners.sockets import Address

__all__ = ["CONNECT_TIMEOUT", "Connections"]

log = logging.getLogger("prouter.agent.relays")

CONNECT_TIMEOUT = 10.0
"""Seconds that a job has to accept a connection."""
_TOO_LATE = f"the job did not take the connection within {CONNECT_TIMEOUT:g} s"
_HTTP = "http"
"""Name of the port where a job's HTTP server is."""
_DYING = 1.0
"""Seconds to wait for the end of a job whose first process is exiting."""
_SWEEP = 1.0
"""Seconds between checks of connections of ended jobs."""


class Servers(Protocol):
    """The servers of jobs, wherever they run: the part of `Runner` that relays need."""

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """See `Runner.connect_at_once`."""

    def connect(self, job: str, address: Address, timeout: float) -> socket.socket:
        """See `Runner.connect`."""

    def find(self, job: str, port: int) -> Address:
        """See `Runner.find`."""


class Connections:
    """Relays by job. Every method runs on the event loop and does not block.

    Args:
        find: gives the record of a job; raises `NotFound`.
        servers: makes connections to jobs.
        exiting: whether a job's first process is ending at this moment.
    """

    def __init__(self, find: Callable[[str], JobRecord], servers: Servers, exiting: Callable[[str], bool]) -> None:
        self.loop = get_hub().loop
        self._find = find
        self._servers = servers
        self._exiting = exiting
        self._by_job: dict[str, set[HttpRelay]] = {}
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
        self._begin(relay, Address.of(record.endpoint))

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
            self._begin(relay, Address.of(endpoint))
        elif type(port) is int and 0 < port < 65536:
            gevent.spawn(self._connect_to, relay, port)
        else:
            named = f"; it has '{_HTTP}'" if endpoint else ""
            relay.end(NO_SUCH_PORT, f"job '{job}' has no port of that name{named}; others are named by their numbers")

    def _connect_to(self, relay: PortRelay, port: int) -> None:
        """Connect to wherever the job listens on a port."""
        try:
            address = self._servers.find(relay.job, port)
        except PRouterError as error:
            if not relay.stream.closed and not self.job_dies(relay):
                relay.end(NO_SUCH_PORT, error.detail)
        except Exception:
            log.exception("event=look_failed job=%s", relay.job)
            relay.end(NO_SUCH_PORT, f"the agent cannot find out whose port {port} is")
        else:
            if not relay.stream.closed:
                self._connect(relay, address)

    def _begin(self, relay: HttpRelay, address: Address) -> None:
        """Connect a relay to its job, at once if that takes no waiting."""
        connection = self._servers.connect_at_once(relay.job, address)
        if connection is not None:
            relay.connected(connection)
        else:
            gevent.spawn(self._connect, relay, address)

    def _connect(self, relay: HttpRelay, address: Address) -> None:
        """Connect a relay to its job; runs in a greenlet of its own."""
        try:
            connection = self._servers.connect(relay.job, address, CONNECT_TIMEOUT)
        except TimeoutError:
            self._not_connected(relay, "connect_timeout", _TOO_LATE)
        except OSError as error:
            if not relay.stream.closed:
                relay.not_connected(error)
        except JobUnreachable as error:
            self._not_connected(relay, "refused", error.detail, may_die=True)
        except PRouterError as error:
            self._not_connected(relay, "job_reset", error.detail, may_die=True)
        except Exception:
            log.exception("event=connecting_failed job=%s", relay.job)
            self._not_connected(relay, "refused", f"the agent cannot find out whose {address} is")
        else:
            if relay.stream.closed:
                connection.close()
            else:
                relay.connected(connection)

    def _not_connected(self, relay: HttpRelay, code: str, text: str, *, may_die: bool = False) -> None:
        if not relay.stream.closed and not (may_die and self.job_dies(relay)):
            relay.end(code, text)

    def _add(self, relay: HttpRelay) -> None:
        relay.stream.handler = relay
        relays = self._by_job.get(relay.job)
        if relays is None:
            relays = self._by_job[relay.job] = set()
        relays.add(relay)

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
        if not self._exiting(relay.job):
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
        for job in list(self._ended):
            for relay in list(self._by_job.get(job, ())):
                if relay.exhausted():
                    relay.end("job_ended", self._ended[job])
            if job not in self._by_job:
                del self._ended[job]
        if self._ended:
            self._sweep_later()


def _pass_ending(relay: HttpRelay, record: JobRecord) -> None:
    """End a stream, with the reason if the job has failed."""
    if record.exit_code == 0:
        relay.pass_end()
    else:
        relay.end("job_ended", record.ending)


def _why_not(record: JobRecord) -> str:
    if record.ended:
        return record.ending
    if record.state is State.RUNNING:
        return f"job '{record.uid}' has no HTTP server"
    return f"job '{record.uid}' is not running yet: {record.state.value}"
