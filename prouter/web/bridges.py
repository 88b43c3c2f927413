"""WebSocket bridges: the router as client of two servers, a job's and another one, passes messages between them.

Raw bytes cannot be relayed, because both sides are servers and a client has to mask its frames (RFC 6455 section 5.3).
So the websockets library handles both connections. The job's side runs over a stream, behind a socket pair; the other
side over a socket that `prouter.web.outgoing` connects, to an address that users may have the router connect to.
Redirects of a handshake are not followed, and proxies of the environment not used: they would lead elsewhere. Fragments
are relayed as they arrive, so that a long message needs no memory of its size. The router itself responds to pings.

The certificate of a ``wss`` URL has to be valid for its host. OpenSSL decides which authorities count: the system's, or
those of ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` in the router's environment.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
from websockets.datastructures import HeadersLike
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event
from websockets.sync.client import ClientConnection, connect

from prouter.access.roles import OPEN_ROUTER, Principal
from prouter.errors import AgentUnavailable, Conflict, JobStarting, JobUnreachable, NotFound, PRouterError
from prouter.jobs import State
from prouter.targets import Found, Targets
from prouter.transport.stream_io import CHUNK, StreamIO, StreamReset
from prouter.web.bridge_urls import masked, server_of, websocket_url
from prouter.web.outgoing import connect_to, look_up
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["Bridge", "Bridges"]

log = logging.getLogger("prouter.bridges")

_OPEN_TIMEOUT = 15.0
_MAX_MESSAGE = None
_MAX_FRAGMENT = 64 * 1024 * 1024
"""Bytes of the largest single frame, which is held in memory."""
_KEEPALIVE = 30.0
"""Seconds between pings to the other server, so that firewalls do not forget a bridge that is silent for days."""
_GOING_AWAY, _INTERNAL_ERROR, _BAD_GATEWAY = 1001, 1011, 1014
_LINGER = 1.0
"""Seconds a server has to close the connection after it closed its WebSocket."""
_NO_STATUS = 1005
_NEVER_SENT = frozenset({_NO_STATUS, 1006, 1015})
"""Close codes that must not be sent: they only describe how a connection ended (RFC 6455 section 7.4.1)."""
_MAX_REASON = 123


class _Connection(ClientConnection):
    """A connection that the router closes if the server does not.

    After its close frame the server should close the connection (RFC 6455 section 7.1.1), and the library reports the
    close only then.
    """

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
            gevent.spawn_later(_LINGER, self.close_socket)


class Bridge:
    """One bridge between a job's WebSocket and another server's.

    Attributes:
        uid: its name in the API.
        connection: uid of the agent's connection.
        job: uid of the job.
        path: path and query of the job's WebSocket.
        url: URL of the other server.
        shown: the same URL without secrets.
        since: epoch seconds at which the bridge was made.
        principal: who made it.
    """

    def __init__(self, route: JobRoute, path: str, url: str, principal: Principal = OPEN_ROUTER) -> None:
        self.uid = uuid.uuid4().hex
        self.connection = route.connection
        self.job = route.record.uid
        self.path = path
        self.url = websocket_url(url)
        self.shown = masked(url)
        self.since = time.time()
        self.principal = principal
        self._stream: StreamIO | None = None
        self._ours: socket.socket | None = None
        self._job_side: ClientConnection | None = None
        self._other_side: ClientConnection | None = None
        self._open = ExitStack()
        self._broken: StreamReset | None = None
        self._unknown: OSError | None = None
        """Why there are none."""
        self._found: list[Found] = []
        """Addresses of the other server that may be connected to."""

    def describe(self) -> dict[str, Any]:
        """Return the bridge as the API lists it."""
        return {
            "uid": self.uid,
            "connection": self.connection,
            "job": self.job,
            "path": masked(self.path),
            "url": self.shown,
            "since": self.since,
        }

    def open_job_side(self, client: RouterClient, headers: HeadersLike) -> None:
        """Connect to the job, with `headers` in the handshake. Blocks the greenlet.

        Raises:
            PRouterError: the job does not exist, does not run, or has no WebSocket at the path.
        """
        self._stream = StreamIO(client.open_stream(self.connection, {"kind": "http", "job": self.job}))
        theirs, self._ours = socket.socketpair()
        gevent.spawn(self._pump_to_job, self._stream, self._ours)
        gevent.spawn(self._pump_from_job, self._stream, self._ours)
        try:
            self._job_side = self._connect(f"ws://localhost{self.path}", theirs, None, headers)
        except (OSError, WebSocketException) as error:
            theirs.close()
            self.close()
            raise _refusal(error, self._broken, self.job) from error

    def find_other_side(self, targets: Targets) -> None:
        """Look up the other server's addresses. Blocks the greenlet. A failure to find them is for `open_other_side`.

        Raises:
            Forbidden: users may not have the router connect there; the code is ``target_forbidden``.
        """
        host, port = server_of(self.url)
        try:
            self._found = targets.usable(host, look_up(host, port, _OPEN_TIMEOUT))
        except OSError as error:
            log.info("event=bridge_target_unknown bridge=%s url=%s error=%r", self.uid, self.shown, str(error))
            self._unknown = error

    def open_other_side(self) -> None:
        """Connect to the other server. Blocks the greenlet.

        Raises:
            JobUnreachable: the server cannot be reached, or has no WebSocket there; the code is ``url_unreachable``.
        """
        sock = None
        try:
            if self._unknown is not None:
                raise self._unknown
            sock = connect_to(self._found, _OPEN_TIMEOUT)
            self._other_side = self._connect(self.url, sock, _KEEPALIVE, ())
        except (OSError, ValueError, WebSocketException) as error:
            if sock is not None:
                sock.close()
            raise JobUnreachable(f"{self.shown} cannot be opened: {_why(error)}", code="url_unreachable") from error

    def run(self) -> None:
        """Relay messages both ways until one side closes, then close the other with the same code."""
        first, second = self._job_side, self._other_side
        assert first is not None
        assert second is not None
        there = gevent.spawn(_copy, first, second)
        back = gevent.spawn(_copy, second, first)
        gevent.joinall([there, back])
        self.close()

    def close(self, code: int = _GOING_AWAY, reason: str = "the bridge ends") -> None:
        """Close both sides. Idempotent."""
        closing = [
            gevent.spawn(_close, side, code, reason) for side in (self._job_side, self._other_side) if side is not None
        ]
        gevent.joinall(closing)
        self._open.close()
        if self._stream is not None:
            self._stream.reset("done")
        if self._ours is not None:
            self._ours.close()

    def _connect(
        self, url: str, sock: socket.socket | None, keepalive: float | None, headers: HeadersLike
    ) -> ClientConnection:
        return self._open.enter_context(
            connect(
                url,
                sock=sock,
                additional_headers=headers,
                compression=None,
                proxy=None,
                open_timeout=_OPEN_TIMEOUT,
                ping_interval=keepalive,
                ping_timeout=None,
                close_timeout=5,
                max_size=(_MAX_MESSAGE, _MAX_FRAGMENT),
                create_connection=_Connection,
            )
        )

    def _pump_to_job(self, stream: StreamIO, ours: socket.socket) -> None:
        try:
            while data := ours.recv(CHUNK):
                stream.write_all(data)
            stream.close()
        except (OSError, StreamReset) as error:
            log.debug("event=bridge_pump_ended bridge=%s error=%r", self.uid, error)
            stream.reset("done")

    def _pump_from_job(self, stream: StreamIO, ours: socket.socket) -> None:
        try:
            while data := stream.read(CHUNK):
                ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
        except StreamReset as error:
            self._broken = error
            ours.close()
        except OSError as error:
            log.debug("event=bridge_pump_ended bridge=%s error=%r", self.uid, error)
            stream.reset("done")


def _copy(source: ClientConnection, target: ClientConnection) -> None:
    """Relay messages by fragments, text as text and binary as binary, and the close at the end."""
    try:
        while True:
            _copy_message(source, target)
    except ConnectionClosed:
        received = source.protocol.close_rcvd
        if received is not None:
            _close(target, received.code, received.reason)
        else:
            _close(target, _GOING_AWAY, "the other side disconnected")
    except WebSocketException as error:
        _close(target, _INTERNAL_ERROR, str(error))


def _close(side: ClientConnection, code: int, reason: str) -> None:
    """Close with the code and reason of the other side, as far as they may be sent. Idempotent."""
    if code == _NO_STATUS:
        code, reason = 1000, ""
    elif code in _NEVER_SENT:
        code = _GOING_AWAY
    side.close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))


def _copy_message(source: ClientConnection, target: ClientConnection) -> None:
    fragments: Iterator[str | bytes] = iter(source.recv_streaming())
    first = next(fragments, None)
    if first is None:
        return
    second = next(fragments, None)
    if second is None:
        target.send(first)
        return

    def all_fragments() -> Iterator[str | bytes]:
        yield first
        yield second
        yield from fragments

    target.send(all_fragments())


class Bridges:
    """The bridges of one worker.

    Args:
        client: the worker's connection to the broker, which knows all workers' bridges.
    """

    def __init__(self, client: RouterClient) -> None:
        self._client = client
        self._bridges: dict[str, Bridge] = {}
        control = client.config.control
        self._targets = Targets(control.allow_targets, lambda: (control.port, client.router.get("agents_port", 0)))
        client.on_bridge_end = self._end_here
        client.end_revoked_bridges = self._end_revoked
        client.list_bridges = lambda: [bridge.describe() for bridge in self._bridges.values()]

    def __len__(self) -> int:
        return len(self._bridges)

    def start(
        self,
        connection: str,
        job: str,
        path: str,
        url: str,
        headers: HeadersLike = (),
        principal: Principal = OPEN_ROUTER,
    ) -> Bridge:
        """Connect to the job and, in the background, to `url`, and bridge them. Blocks until the job is connected.

        Args:
            headers: additional fields of the handshake with the job.
            principal: who asks for the bridge, which ends when their token is revoked.

        Raises:
            InvalidRequest: no WebSocket client can use the URL.
            Forbidden: users may not have the router connect there.
            PRouterError: the job does not run, cannot be reached, or its WebSocket does not open.
        """
        websocket_url(url)
        route = self._client.usable_route(connection, job, _obstacle)
        bridge = Bridge(route, path, url, principal)
        bridge.find_other_side(self._targets)
        bridge.open_job_side(self._client, headers)
        self._bridges[bridge.uid] = bridge
        gevent.spawn(self._run, bridge)
        try:
            self._client.tell_bridges()
        except PRouterError:
            bridge.close()
            raise
        return bridge

    def _end_here(self, uid: str) -> None:
        bridge = self._bridges.get(uid)
        if bridge is not None:
            gevent.spawn(bridge.close)

    def _end_revoked(self) -> None:
        gate = self._client.gate
        for bridge in list(self._bridges.values()):
            if gate is not None and not gate.holds(bridge.principal):
                gevent.spawn(bridge.close)

    def _run(self, bridge: Bridge) -> None:
        log.info("event=bridge_opened bridge=%s job=%s url=%s", bridge.uid, bridge.job, bridge.shown)
        try:
            bridge.open_other_side()
            bridge.run()
        except PRouterError as error:
            log.warning("event=bridge_failed bridge=%s job=%s error=%r", bridge.uid, bridge.job, error.detail)
            bridge.close(_BAD_GATEWAY, error.detail)
        except Exception:
            log.exception("event=bridge_broke bridge=%s job=%s", bridge.uid, bridge.job)
        finally:
            bridge.close()
            self._bridges.pop(bridge.uid, None)
            self._client.bridges_changed()
            log.info("event=bridge_ended bridge=%s job=%s", bridge.uid, bridge.job)


def _obstacle(route: JobRoute) -> PRouterError | None:
    """Return why a job's WebSocket cannot be opened: `NotFound` (removed), `Conflict` (not running) or others."""
    record = route.record
    job, state = record.uid, record.state.value
    if record.state is State.CLOSED:
        return NotFound(f"job '{job}' is not found: it was removed", job=job, state=state)
    if record.ended:
        return Conflict(f"job '{job}': {record.ending}", job=job, state=state)
    if record.state is State.NEW:
        return Conflict(f"job '{job}' has not been started", job=job, state=state)
    if not route.up:
        return AgentUnavailable("the job's agent is out of reach at the moment", job=job, state=state, retry_after=2)
    if record.state is State.PENDING:
        return JobStarting(f"job '{job}' is starting", job=job, state=state, retry_after=2)
    if not record.endpoint:
        return JobUnreachable(
            f"job '{job}' has no HTTP server: start it with expose", job=job, state=state, code="no_endpoint"
        )
    return None


def _why(error: Exception) -> str:
    """Return in words why the other server's WebSocket did not open."""
    if isinstance(error, InvalidStatus) and "Location" in error.response.headers:
        return f"{error}, a redirect to another URL, which the router does not follow; give that URL"
    return str(error)


def _refusal(error: Exception, reset: StreamReset | None, job: str) -> PRouterError:
    """Return why a job's WebSocket did not open; the agent's reason is newer than the cached record."""
    if reset is None:
        return JobUnreachable(f"the job's WebSocket cannot be opened: {error}", job=job)
    if reset.code == "no_job":
        return NotFound(reset.detail, job=job)
    if reset.code == "not_running":
        return Conflict(reset.detail, job=job)
    return JobUnreachable(f"the job's WebSocket cannot be opened: {reset.detail}", job=job)
